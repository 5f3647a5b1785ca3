// Judges proofs of Talkoo's state by cosmos/ics23: one JSON object per line in, `true` or `false` per line out.
package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"

	ics23 "github.com/cosmos/ics23/go"
)

type question struct {
	AppHash string  `json:"app_hash"`
	Module  string  `json:"module"`
	Root    string  `json:"root"`
	Key     string  `json:"key"`
	Value   *string `json:"value"`
	Smt     string  `json:"smt"`
	Simple  string  `json:"simple"`
}

func raw(text string) []byte {
	data, err := hex.DecodeString(text)
	if err != nil {
		panic(err)
	}
	return data
}

func proof(text string) *ics23.CommitmentProof {
	var read ics23.CommitmentProof
	if read.Unmarshal(raw(text)) != nil {
		return nil
	}
	return &read
}

func holds(q question) bool {
	smt, simple := proof(q.Smt), proof(q.Simple)
	if smt == nil || simple == nil {
		return false
	}
	root := raw(q.Root)
	if !ics23.VerifyMembership(ics23.TendermintSpec, raw(q.AppHash), simple, []byte(q.Module), root) {
		return false
	}
	if q.Value == nil {
		return ics23.VerifyNonMembership(ics23.SmtSpec, root, smt, []byte(q.Key))
	}
	return ics23.VerifyMembership(ics23.SmtSpec, root, smt, []byte(q.Key), raw(*q.Value))
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var q question
		if err := json.Unmarshal(lines.Bytes(), &q); err != nil {
			panic(err)
		}
		fmt.Println(holds(q))
	}
}
