// Prints published corner cases of Ed25519 with what CometBFT itself says of each. To renew, in the folder above:
//
//	go mod download -json github.com/c2sp/wycheproof@v0.0.0-20260902155932-3fa63dd0344a   (prints its Dir)
//	go list -m -f '{{.Dir}}' github.com/oasisprotocol/curve25519-voi
//	go run ./signatures DIR_OF_WYCHEPROOF DIR_OF_VOI > ../signatures.json
package main

import (
	"compress/gzip"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/cometbft/cometbft/crypto/ed25519"
)

type object map[string]any

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func bytesOf(text string) []byte {
	data, err := hex.DecodeString(text)
	must(err)
	return data
}

func one(name, key, message, signature string) object {
	verdict := ed25519.PubKey(bytesOf(key)).VerifySignature(bytesOf(message), bytesOf(signature))
	return object{"name": name, "key": key, "message": message, "signature": signature, "cometbft": verdict}
}

func read(path string, into any) {
	file, err := os.Open(path)
	must(err)
	defer file.Close()
	if filepath.Ext(path) != ".gz" {
		must(json.NewDecoder(file).Decode(into))
		return
	}
	unpacked, err := gzip.NewReader(file)
	must(err)
	must(json.NewDecoder(unpacked).Decode(into))
}

func wycheproof(folder string) []object {
	var file struct {
		TestGroups []struct {
			PublicKey struct{ Pk string }
			Tests     []struct {
				TcId                      int
				Comment, Msg, Sig, Result string
				Flags                     []string
			}
		}
	}
	read(filepath.Join(folder, "testvectors_v1", "ed25519_test.json"), &file)
	out := []object{}
	for _, group := range file.TestGroups {
		for _, test := range group.Tests {
			entry := one(test.Comment, group.PublicKey.Pk, test.Msg, test.Sig)
			entry["id"], entry["result"], entry["flags"] = test.TcId, test.Result, test.Flags
			out = append(out, entry)
		}
	}
	return out
}

func smallOrder(testdata string) []object {
	var pairs [][2]string
	read(filepath.Join(testdata, "zip215.json.gz"), &pairs)
	out := []object{}
	for _, pair := range pairs {
		out = append(out, one("", pair[0], hex.EncodeToString([]byte("Zcash")), pair[1]))
	}
	return out
}

func speccheck(testdata string) []object {
	var cases []struct {
		Message, Signature string
		PubKey             string `json:"pub_key"`
	}
	read(filepath.Join(testdata, "speccheck_cases.json.gz"), &cases)
	out := []object{}
	for _, each := range cases {
		out = append(out, one("", each.PubKey, each.Message, each.Signature))
	}
	return out
}

func combinations(testdata string) []object {
	var cases []struct{ A, R, S, M string }
	read(filepath.Join(testdata, "ed25519vectors.json.gz"), &cases)
	out := []object{}
	for _, each := range cases {
		out = append(out, one("", each.A, hex.EncodeToString([]byte(each.M)), each.R+each.S))
	}
	return out
}

func main() {
	testdata := filepath.Join(os.Args[2], "primitives", "ed25519", "testdata")
	encoder := json.NewEncoder(os.Stdout)
	must(encoder.Encode(object{
		"sources": object{
			"wycheproof":   "github.com/c2sp/wycheproof v0.0.0-20260902155932-3fa63dd0344a, Apache-2.0",
			"small_order":  "ZIP-215's own 196 signatures of small order, as in curve25519-voi, BSD-3-Clause",
			"speccheck":    "Chalkias, Garillot, Nikolaenko: Taming the many EdDSAs, twelve cases, Apache-2.0",
			"combinations": "Valsorda's combinations of low-order and non-canonical points, as in curve25519-voi, BSD-3-Clause",
		},
		"cometbft": "v1.0.1", "wycheproof": wycheproof(os.Args[1]), "small_order": smallOrder(testdata),
		"speccheck": speccheck(testdata), "combinations": combinations(testdata),
	}))
}
