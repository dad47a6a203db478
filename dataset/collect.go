package dataset

import (
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"
)

// Collect removes the segments of c.Dir that keep does not want, and gives
// their ids. Whoever reads one goes on reading. What is younger than age stays:
// a segment is there before any version names it.
func (c *Cache) Collect(keep func(id string) bool, now time.Time, age time.Duration) (removed []string, err error) {
	entries, err := os.ReadDir(c.Dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || len(id) != 64 || keep(id) {
			continue
		}
		st, serr := e.Info()
		if errors.Is(serr, fs.ErrNotExist) || serr == nil && now.Sub(st.ModTime()) < age {
			continue
		}
		c.Forget(id)
		if rerr := os.Remove(Path(c.Dir, id)); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
			err = errors.Join(err, rerr)
			continue
		}
		removed = append(removed, id)
	}
	return removed, err
}
