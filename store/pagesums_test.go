package store

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// However many pages are broken, missing or in the log, a database that is
// read in parts at once is judged as one that is read page by page: the first
// that is wrong is named.
func TestTheFirstWrongPageIsNamed(t *testing.T) {
	const size, pages = 512, 3*verifyPages + 7
	r := rand.New(rand.NewPCG(7, 7))
	whole := make([]byte, size*pages)
	for i := range whole {
		whole[i] = byte(r.Uint32())
	}
	whole[16], whole[17] = size>>8, size&0xff
	path := filepath.Join(t.TempDir(), "clawr.db")
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	s, _, err := openSums(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	if err := s.baseline(); err != nil {
		t.Fatal(err)
	}
	rapid.Check(t, func(t *rapid.T) {
		file := slices.Clone(whole)
		broken := map[int]bool{}
		for _, i := range rapid.SliceOfN(rapid.IntRange(1, pages-1), 0, 4).Draw(t, "broken") {
			file[i*size+rapid.IntRange(0, size-1).Draw(t, "byte")] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
			broken[i] = !slices.Equal(file[i*size:(i+1)*size], whole[i*size:(i+1)*size])
		}
		cut := len(file)
		if rapid.Bool().Draw(t, "cut") {
			cut = rapid.IntRange(18, len(file)).Draw(t, "length")
		}
		log := &wal{last: map[uint32]uint32{}}
		for _, i := range slices.Sorted(maps.Keys(broken)) {
			if rapid.Bool().Draw(t, "in the log") {
				log.last[uint32(i+1)] = 0
			}
		}
		if rapid.Bool().Draw(t, "the log has the end") {
			for i := cut / size; i < pages; i++ {
				log.last[uint32(i+1)] = 0
			}
		}
		want := ""
		for i := range pages {
			switch {
			case log.has(uint32(i + 1)):
				continue
			case (i+1)*size > cut:
				want = fmt.Sprintf("ends before page %d", i+1)
			case broken[i]:
				want = fmt.Sprintf("page %d of", i+1)
			default:
				continue
			}
			break
		}
		if err := os.WriteFile(path, file[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		if got := s.verify(log); (got == nil) != (want == "") || got != nil && !strings.Contains(got.Error(), want) {
			t.Fatalf("%v, want %q", got, want)
		}
	})
}
