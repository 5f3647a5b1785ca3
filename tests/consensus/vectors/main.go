// Prints what CometBFT itself encodes, hashes and rotates, as JSON, from a fixed seed. Our encodings are tested against
// it. To renew: go mod tidy && go run . > ../vectors.json
package main

import (
	"encoding/hex"
	"encoding/json"
	"math/rand"
	"os"
	"time"

	abci "github.com/cometbft/cometbft/abci/types"
	cmtversion "github.com/cometbft/cometbft/api/cometbft/version/v1"
	"github.com/cometbft/cometbft/crypto"
	"github.com/cometbft/cometbft/crypto/ed25519"
	"github.com/cometbft/cometbft/crypto/merkle"
	"github.com/cometbft/cometbft/types"
)

type object map[string]any

var source = rand.New(rand.NewSource(20260701))

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func random(length int) []byte {
	out := make([]byte, length)
	source.Read(out)
	return out
}

func text(data []byte) string { return hex.EncodeToString(data) }

// nanoseconds since 1970, as text parts: the year 1 does not fit 64 bits.
func moment(t time.Time) object { return object{"seconds": t.Unix(), "nanos": t.Nanosecond()} }

func times() []time.Time {
	return []time.Time{
		{},
		time.Unix(0, 0).UTC(),
		time.Unix(0, 1).UTC(),
		time.Unix(1_700_000_000, 0).UTC(),
		time.Unix(1_700_000_000, 999_999_999).UTC(),
		time.Unix(-1, 500).UTC(),
		time.Date(9999, 12, 31, 23, 59, 59, 999_999_999, time.UTC),
	}
}

func blockID(nilValue bool) types.BlockID {
	if nilValue {
		return types.BlockID{}
	}
	return types.BlockID{Hash: random(32), PartSetHeader: types.PartSetHeader{Total: uint32(1 + source.Intn(60)), Hash: random(32)}}
}

func id(b types.BlockID) object {
	return object{"hash": text(b.Hash), "total": b.PartSetHeader.Total, "parts": text(b.PartSetHeader.Hash)}
}

func votes() []object {
	out := []object{}
	heights := []int64{1, 2, 255, 1 << 40}
	rounds := []int32{0, 1, 300, 1<<31 - 1}
	for i := 0; i < 84; i++ {
		kind := types.PrevoteType
		if i%2 == 1 {
			kind = types.PrecommitType
		}
		vote := &types.Vote{
			Type: kind, Height: heights[source.Intn(4)], Round: rounds[source.Intn(4)], BlockID: blockID(i%3 == 0),
			Timestamp: times()[i%7], ValidatorAddress: random(20), ValidatorIndex: int32(source.Intn(100)), Signature: random(64),
		}
		if kind == types.PrecommitType && i%3 != 0 && i%5 != 0 {
			vote.Extension, vote.ExtensionSignature = random(source.Intn(40)), random(64)
		}
		chain := []string{"talkoo-local", "", "c"}[source.Intn(3)]
		pb := vote.ToProto()
		wire, err := pb.Marshal()
		must(err)
		out = append(out, object{
			"type": int(kind), "height": vote.Height, "round": vote.Round, "block_id": id(vote.BlockID), "time": moment(vote.Timestamp),
			"address": text(vote.ValidatorAddress), "index": vote.ValidatorIndex, "signature": text(vote.Signature),
			"extension": text(vote.Extension), "extension_signature": text(vote.ExtensionSignature), "chain_id": chain,
			"sign_bytes": text(types.VoteSignBytes(chain, pb)), "extension_sign_bytes": text(types.VoteExtensionSignBytes(chain, pb)),
			"wire": text(wire),
		})
	}
	return out
}

func proposals() []object {
	out := []object{}
	for i := 0; i < 28; i++ {
		round := []int32{0, 1, 7, 1000}[source.Intn(4)]
		p := &types.Proposal{
			Type: types.ProposalType, Height: []int64{1, 77, 1 << 33}[source.Intn(3)], Round: round, POLRound: round - 1,
			BlockID: blockID(false), Timestamp: times()[i%7], Signature: random(64),
		}
		if i%2 == 0 {
			p.POLRound = -1
		}
		pb := p.ToProto()
		wire, err := pb.Marshal()
		must(err)
		out = append(out, object{
			"height": p.Height, "round": p.Round, "pol_round": p.POLRound, "block_id": id(p.BlockID), "time": moment(p.Timestamp),
			"signature": text(p.Signature), "chain_id": "talkoo-local", "sign_bytes": text(types.ProposalSignBytes("talkoo-local", pb)),
			"wire": text(wire),
		})
	}
	return out
}

func randomCommit(height int64) *types.Commit {
	commit := &types.Commit{Height: height, Round: int32(source.Intn(3)), BlockID: blockID(false)}
	for i := 0; i < 1+source.Intn(6); i++ {
		sig := types.CommitSig{BlockIDFlag: types.BlockIDFlag(1 + source.Intn(3))}
		if sig.BlockIDFlag != types.BlockIDFlagAbsent {
			sig.ValidatorAddress, sig.Timestamp, sig.Signature = random(20), times()[1+source.Intn(6)], random(64)
		}
		commit.Signatures = append(commit.Signatures, sig)
	}
	return commit
}

func sizes(i int) []types.Tx {
	txs := []types.Tx{}
	for j := 0; j < i%5; j++ {
		txs = append(txs, random(1+source.Intn(200)))
	}
	return txs
}

// The bytes of large blocks are not kept: only what they hash to, and the text their transactions repeat.
func blocks() []object {
	out := []object{}
	for i := 0; i < 20; i++ {
		height := int64(1 + i*i*i)
		commit := &types.Commit{}
		if height > 1 {
			commit = randomCommit(height - 1)
		}
		txs := sizes(i)
		repeat := 1
		if i >= 17 {
			repeat = 600
			for j := range txs {
				txs[j] = []byte(repeated(txs[j], repeat))
			}
		}
		block := types.MakeBlock(height, txs, commit, nil)
		last := blockID(height == 1)
		block.Header.Populate(
			cmtversion.Consensus{Block: 11, App: uint64(i % 3)}, "talkoo-local", times()[i%7], last,
			random(32), random(32), random(32), appHash(i), random(32), random(20),
		)
		parts, err := block.MakePartSet(types.BlockPartSizeBytes)
		must(err)
		pb, err := block.ToProto()
		must(err)
		wire, err := pb.Marshal()
		must(err)
		signatures := []object{}
		for _, sig := range commit.Signatures {
			signatures = append(signatures, object{
				"flag": int(sig.BlockIDFlag), "address": text(sig.ValidatorAddress), "time": moment(sig.Timestamp), "signature": text(sig.Signature),
			})
		}
		h := block.Header
		plain := []string{}
		for _, tx := range txs {
			plain = append(plain, text(tx[:len(tx)/repeat]))
		}
		entry := object{
			"version_app": h.Version.App, "chain_id": h.ChainID, "height": h.Height, "time": moment(h.Time), "last_block_id": id(h.LastBlockID),
			"last_commit_hash": text(h.LastCommitHash), "data_hash": text(h.DataHash), "validators_hash": text(h.ValidatorsHash),
			"next_validators_hash": text(h.NextValidatorsHash), "consensus_hash": text(h.ConsensusHash), "app_hash": text(h.AppHash),
			"last_results_hash": text(h.LastResultsHash), "evidence_hash": text(h.EvidenceHash), "proposer_address": text(h.ProposerAddress),
			"txs": plain, "repeat": repeat,
			"commit":      object{"height": commit.Height, "round": commit.Round, "block_id": id(commit.BlockID), "signatures": signatures},
			"commit_hash": text(commit.Hash()), "hash": text(block.Hash()), "size": len(wire),
			"id": id(types.BlockID{Hash: block.Hash(), PartSetHeader: parts.Header()}),
		}
		if repeat == 1 {
			entry["wire"] = text(wire)
		}
		out = append(out, entry)
	}
	return out
}

func appHash(i int) []byte {
	if i%4 == 0 {
		return nil
	}
	return random(32)
}

func repeated(data []byte, times int) []byte {
	out := make([]byte, 0, len(data)*times)
	for i := 0; i < times; i++ {
		out = append(out, data...)
	}
	return out
}

func key() crypto.PubKey { return ed25519.GenPrivKeyFromSecret(random(32)).PubKey() }

func members(set *types.ValidatorSet) []object {
	out := []object{}
	for _, v := range set.Validators {
		out = append(out, object{"key": text(v.PubKey.Bytes()), "address": text(v.Address), "power": v.VotingPower, "priority": v.ProposerPriority})
	}
	return out
}

// Each rotation: changes, then what the set is after them and one increment.
func rotations() []object {
	out := []object{}
	skews := [][]int64{{1}, {1, 1, 1, 1}, {10, 10, 10, 10}, {1, 2, 3, 4}, {1000, 1, 1, 1}, {5, 5, 1 << 40, 7, 9}, {100, 100, 100, 1, 1, 1, 1}, {1 << 58, 1 << 58, 3}}
	for _, powers := range skews {
		first := []*types.Validator{}
		pool := []crypto.PubKey{}
		for _, power := range powers {
			pool = append(pool, key())
			first = append(first, types.NewValidator(pool[len(pool)-1], power))
		}
		for i := 0; i < 3; i++ {
			pool = append(pool, key())
		}
		initial := []object{}
		for _, v := range first {
			initial = append(initial, object{"key": text(v.PubKey.Bytes()), "power": v.VotingPower})
		}
		set := types.NewValidatorSet(first)
		entry := object{"initial": initial, "created": members(set), "proposer": text(set.GetProposer().Address), "hash": text(set.Hash())}
		later := []string{}
		for round := int32(1); round <= 5; round++ {
			later = append(later, text(set.CopyIncrementProposerPriority(round).GetProposer().Address))
		}
		entry["later_rounds"] = later
		steps := []object{}
		for i := 0; i < 24; i++ {
			changes := []object{}
			if i%3 == 2 {
				change := []*types.Validator{}
				for _, k := range pool {
					if source.Intn(3) > 0 {
						continue
					}
					power := int64(source.Intn(200))
					if source.Intn(4) == 0 {
						power = 0
					}
					_, present := set.GetByAddress(k.Address())
					if power == 0 && (present == nil || set.Size()-len(change) < 2) {
						continue
					}
					change = append(change, types.NewValidator(k, power))
					changes = append(changes, object{"key": text(k.Bytes()), "power": power})
				}
				must(set.UpdateWithChangeSet(change))
			}
			set.IncrementProposerPriority(1)
			steps = append(steps, object{"changes": changes, "members": members(set), "proposer": text(set.GetProposer().Address), "hash": text(set.Hash())})
		}
		entry["steps"] = steps
		out = append(out, entry)
	}
	return out
}

func results() []object {
	out := []object{}
	for i := 0; i < 8; i++ {
		list := []*abci.ExecTxResult{}
		plain := []object{}
		for j := 0; j < i; j++ {
			r := &abci.ExecTxResult{Code: uint32(source.Intn(3)), Data: random(source.Intn(4)), Log: "dropped", GasWanted: int64(source.Intn(3)), GasUsed: int64(source.Intn(1000))}
			list = append(list, r)
			plain = append(plain, object{"code": r.Code, "data": text(r.Data), "gas_wanted": r.GasWanted, "gas_used": r.GasUsed})
		}
		out = append(out, object{"results": plain, "hash": text(types.NewResults(list).Hash())})
	}
	return out
}

func consensusParams() []object {
	out := []object{}
	for _, pair := range [][2]int64{{4194304, -1}, {1, 0}, {22020096, 5_000_000}, {100 << 20, 1 << 40}} {
		params := types.DefaultConsensusParams()
		params.Block = types.BlockParams{MaxBytes: pair[0], MaxGas: pair[1]}
		out = append(out, object{"max_bytes": pair[0], "max_gas": pair[1], "hash": text(params.Hash())})
	}
	return out
}

func trees() []object {
	out := []object{}
	for _, count := range []int{0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 21} {
		leaves := [][]byte{}
		plain := []string{}
		for i := 0; i < count; i++ {
			leaf := random(source.Intn(20))
			leaves = append(leaves, leaf)
			plain = append(plain, text(leaf))
		}
		root, proofs := merkle.ProofsFromByteSlices(leaves)
		aunts := [][]string{}
		for _, proof := range proofs {
			one := []string{}
			for _, aunt := range proof.Aunts {
				one = append(one, text(aunt))
			}
			aunts = append(aunts, one)
		}
		out = append(out, object{"leaves": plain, "root": text(root), "aunts": aunts})
	}
	return out
}

// Two votes of one validator as they came, and the evidence CometBFT makes of them. `ed25519` keys sign for real.
func evidence() []object {
	out := []object{}
	for i := 0; i < 12; i++ {
		keys := []ed25519.PrivKey{}
		validators := []*types.Validator{}
		initial := []object{}
		for j := 0; j < 1+i%4; j++ {
			keys = append(keys, ed25519.GenPrivKeyFromSecret(random(32)))
			validators = append(validators, types.NewValidator(keys[j].PubKey(), int64(1+source.Intn(1000))))
			initial = append(initial, object{"key": text(keys[j].PubKey().Bytes()), "power": validators[j].VotingPower})
		}
		set := types.NewValidatorSet(validators)
		signer := keys[source.Intn(len(keys))]
		index, _ := set.GetByAddress(signer.PubKey().Address())
		height, round := int64(1+source.Intn(1000)), int32(source.Intn(3))
		kind := []types.SignedMsgType{types.PrevoteType, types.PrecommitType}[i%2]
		pair := []*types.Vote{}
		for j := 0; j < 2; j++ {
			vote := &types.Vote{
				Type: kind, Height: height, Round: round, BlockID: blockID(i%3 == 2 && j == i%2), Timestamp: times()[3+j],
				ValidatorAddress: signer.PubKey().Address(), ValidatorIndex: index,
			}
			signature, err := signer.Sign(types.VoteSignBytes("talkoo-local", vote.ToProto()))
			must(err)
			vote.Signature = signature
			pair = append(pair, vote)
		}
		when := time.Unix(1_700_000_000+int64(i), int64(i)).UTC()
		made, err := types.NewDuplicateVoteEvidence(pair[0], pair[1], when, set)
		must(err)
		must(made.ValidateBasic())
		came := []string{}
		for _, vote := range pair {
			wire, err := vote.ToProto().Marshal()
			must(err)
			came = append(came, text(wire))
		}
		wire, err := made.ToProto().Marshal()
		must(err)
		out = append(out, object{
			"chain_id": "talkoo-local", "initial": initial, "votes": came, "time": moment(when), "wire": text(wire), "hash": text(made.Hash()),
		})
		evidenceMade = append(evidenceMade, made)
	}
	return out
}

var evidenceMade []types.Evidence

// Lists of the evidence above, by how many of it they hold, alone and in a block.
func evidenceLists() []object {
	out := []object{}
	for _, count := range []int{0, 1, 2, 3, 12} {
		list := types.EvidenceList(evidenceMade[:count])
		block := types.MakeBlock(9, sizes(3), randomCommit(8), list)
		block.Header.Populate(
			cmtversion.Consensus{Block: 11}, "talkoo-local", times()[3], blockID(false), random(32), random(32), random(32), random(32), random(32), random(20),
		)
		parts, err := block.MakePartSet(types.BlockPartSizeBytes)
		must(err)
		pb, err := block.ToProto()
		must(err)
		wire, err := pb.Marshal()
		must(err)
		must(block.ValidateBasic())
		out = append(out, object{
			"count": count, "hash": text(list.Hash()), "size": block.Evidence.ByteSize(), "block": text(wire), "evidence_hash": text(block.EvidenceHash),
			"id": id(types.BlockID{Hash: block.Hash(), PartSetHeader: parts.Header()}),
		})
	}
	return out
}

func main() {
	encoder := json.NewEncoder(os.Stdout)
	must(encoder.Encode(object{
		"cometbft": "v1.0.1", "votes": votes(), "proposals": proposals(), "blocks": blocks(), "rotations": rotations(),
		"results": results(), "consensus_params": consensusParams(), "trees": trees(),
		"evidence": evidence(), "evidence_lists": evidenceLists(),
	}))
}
