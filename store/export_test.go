package store

import (
	"maps"
	"slices"
)

// Statements are what a book in SQLite was asked and told so far.
func (db *DB) Statements() []string {
	s := db.engine.(*sqliteDB)
	var out []string
	for _, p := range []*prepared{s.reads, s.writes} {
		p.mu.RLock()
		out = slices.AppendSeq(out, maps.Keys(p.stmts))
		p.mu.RUnlock()
	}
	return out
}
