// Command generate prints golden vectors for the transparency log crate.
//
// It owns nothing but the choice of inputs: every hash, proof, tile and
// signature below is computed by golang.org/x/mod/sumdb/{tlog,note} (the code
// behind sum.golang.org) and, for the witness cosignature, by
// github.com/transparency-dev/formats/note. Run it as
//
//	go run . > ../go_xmod.json
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strings"

	fnote "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

const (
	smallSize = 300
	largeSize = 70_000
	origin    = "log.evidenceos.example/golden"
	witness   = "witness.evidenceos.example/w1"
	unixSecs  = 1_700_000_000
)

type memory []tlog.Hash

func (m memory) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		out[i] = m[x]
	}
	return out, nil
}

type inclusion struct {
	Index int64    `json:"index"`
	Size  int64    `json:"size"`
	Proof []string `json:"proof"`
}

type consistency struct {
	First  int64    `json:"first"`
	Second int64    `json:"second"`
	Proof  []string `json:"proof"`
}

type tileVector struct {
	Path   string `json:"path"`
	Bytes  int    `json:"bytes"`
	Sha256 string `json:"sha256"`
}

type vectors struct {
	Leaf           string        `json:"leaf"`
	Roots          []string      `json:"roots_0_to_300"`
	LargeSize      int64         `json:"large_size"`
	LargeRoot      string        `json:"large_root"`
	Inclusion      []inclusion   `json:"inclusion"`
	Consistency    []consistency `json:"consistency"`
	Tiles          []tileVector  `json:"tiles_of_large"`
	Seed           string        `json:"log_seed"`
	Vkey           string        `json:"log_vkey"`
	Note           string        `json:"signed_checkpoint"`
	WitnessSeed    string        `json:"witness_seed"`
	WitnessVkey    string        `json:"witness_vkey"`
	CosignedNote   string        `json:"cosigned_checkpoint"`
	CosignedAtUnix uint64        `json:"cosigned_at_unix_s"`
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

func hexes[T ~[32]byte](hashes []T) []string {
	out := []string{}
	for _, h := range hashes {
		b := [32]byte(h)
		out = append(out, hex.EncodeToString(b[:]))
	}
	return out
}

func seed(b byte) []byte { return bytes.Repeat([]byte{b}, ed25519.SeedSize) }

// signerKey writes x/mod's private key text for a fixed seed.
func signerKey(name string, kind byte, seed []byte) (skey, vkey string) {
	public := ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey)
	typed := append([]byte{kind}, public...)
	digest := sha256.Sum256(append([]byte(name+"\n"), typed...))
	id := binary.BigEndian.Uint32(digest[:4])
	b64 := base64.StdEncoding.EncodeToString
	skey = fmt.Sprintf("PRIVATE+KEY+%s+%08x+%s", name, id, b64(append([]byte{kind}, seed...)))
	vkey = fmt.Sprintf("%s+%08x+%s", name, id, b64(typed))
	return skey, vkey
}

func main() {
	var hashes memory
	out := vectors{Leaf: "leaf %d", LargeSize: largeSize, CosignedAtUnix: unixSecs}
	out.Roots = append(out.Roots, hex.EncodeToString(sha256.New().Sum(nil)))
	for i := int64(0); i < largeSize; i++ {
		leaf := fmt.Appendf(nil, "leaf %d", i)
		hashes = append(hashes, must(tlog.StoredHashes(i, leaf, hashes))...)
		if i < smallSize {
			out.Roots = append(out.Roots, hexes([]tlog.Hash{must(tlog.TreeHash(i+1, hashes))})[0])
		}
	}
	root := must(tlog.TreeHash(largeSize, hashes))
	out.LargeRoot = hexes([]tlog.Hash{root})[0]

	for _, c := range [][2]int64{{0, 1}, {0, 2}, {6, 7}, {128, 256}, {255, 256}, {255, 257}, {256, 257}, {299, 300}, {0, largeSize}, {65_535, largeSize}, {65_536, largeSize}, {69_887, largeSize}, {69_999, largeSize}} {
		proof := must(tlog.ProveRecord(c[1], c[0], hashes))
		out.Inclusion = append(out.Inclusion, inclusion{c[0], c[1], hexes([]tlog.Hash(proof))})
	}
	for _, c := range [][2]int64{{1, 2}, {5, 6}, {9, 10}, {13, 14}, {64, 65}, {128, 256}, {255, 257}, {256, 300}, {299, 300}, {256, largeSize}, {65_536, largeSize}, {65_537, largeSize}, {69_999, largeSize}, {largeSize, largeSize}} {
		proof := must(tlog.ProveTree(c[1], c[0], hashes))
		out.Consistency = append(out.Consistency, consistency{c[0], c[1], hexes([]tlog.Hash(proof))})
	}
	for _, t := range tlog.NewTiles(8, 0, largeSize) {
		if t.L == -1 || (t.L == 0 && t.W == 256 && t.N%64 != 0) {
			continue
		}
		data := must(tlog.ReadTileData(t, hashes))
		sum := sha256.Sum256(data)
		path := strings.Replace(t.Path(), "tile/8/", "tile/", 1)
		out.Tiles = append(out.Tiles, tileVector{path, len(data), hex.EncodeToString(sum[:])})
	}

	body := fmt.Sprintf("%s\n%d\n%s\n", origin, int64(largeSize), base64.StdEncoding.EncodeToString(root[:]))
	skey, vkey := signerKey(origin, 0x01, seed(7))
	out.Seed, out.Vkey = hex.EncodeToString(seed(7)), vkey
	signer := must(note.NewSigner(skey))
	out.Note = string(must(note.Sign(&note.Note{Text: body}, signer)))

	// The library stamps the current time, so the time is pinned by building
	// the message here and checking the library accepts it.
	_, cosignerVkey := signerKey(witness, 0x04, seed(9))
	out.WitnessSeed, out.WitnessVkey = hex.EncodeToString(seed(9)), cosignerVkey
	message := fmt.Sprintf("cosignature/v1\ntime %d\n%s", unixSecs, body)
	raw := binary.BigEndian.AppendUint64(nil, unixSecs)
	raw = append(raw, ed25519.Sign(ed25519.NewKeyFromSeed(seed(9)), []byte(message))...)
	id := must(hex.DecodeString(strings.Split(cosignerVkey, "+")[1]))
	line := fmt.Sprintf("— %s %s\n", witness, base64.StdEncoding.EncodeToString(append(id, raw...)))
	out.CosignedNote = out.Note + line
	logVerifier := must(note.NewVerifier(vkey))
	cosigVerifier := must(fnote.NewVerifierForCosignatureV1(cosignerVkey))
	opened := must(note.Open([]byte(out.CosignedNote), note.VerifierList(logVerifier, cosigVerifier)))
	if len(opened.Sigs) != 2 {
		log.Fatal("the reference does not accept the cosignature")
	}

	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", " ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(out); err != nil {
		log.Fatal(err)
	}
}
