package store

import (
	"context"
	"database/sql"
	"maps"
	"regexp"
	"slices"
	"strconv"
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

// parameter is how a statement names one.
var parameter = regexp.MustCompile(`\$([0-9]+)`)

// Plan are the steps by which a book in SQLite would carry out a statement,
// whatever its parameters are.
func (db *DB) Plan(ctx context.Context, statement string) (steps []string, err error) {
	n := 0
	for _, m := range parameter.FindAllStringSubmatch(statement, -1) {
		i, err := strconv.Atoi(m[1])
		if err != nil {
			return nil, err
		}
		n = max(n, i)
	}
	rows, err := db.reader().QueryContext(ctx, "EXPLAIN QUERY PLAN "+statement, make([]any, n)...)
	err = each(rows, err, func(rows *sql.Rows) error {
		var id, parent, unused int
		var step string
		err := rows.Scan(&id, &parent, &unused, &step)
		steps = append(steps, step)
		return err
	})
	return steps, err
}
