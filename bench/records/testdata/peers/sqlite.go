package main

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"
)

// The best of five ways to have SQLite answer in Go: a prepared statement on a
// connection that one goroutine at a time has for itself, and each record's
// JSON in a column, so that nothing is rendered. All columns that clawr indexes
// and that a query could filter by have an index here too.
const schema = `
	CREATE TABLE records (_row INTEGER PRIMARY KEY, id INTEGER, sku TEXT, name TEXT, brand TEXT, category TEXT, country TEXT, city TEXT, price REAL, score REAL, stock INTEGER,
		active INTEGER, released TEXT, updated TEXT, zip TEXT, json TEXT NOT NULL);
	CREATE VIRTUAL TABLE fts USING fts5(sku, name, brand, category, country, city, zip, notes, content='', detail='none', columnsize=0);`

const insert = `INSERT INTO records VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)`

var indexes = []string{"id", "sku", "brand", "category", "country", "city", "price", "score", "stock", "released", "updated", "zip"}

// statements are the shapes of the benchmark, under /NAME.
var statements = map[string]string{
	"l1":          `SELECT json FROM records ORDER BY _row LIMIT 1`,
	"l100":        `SELECT json FROM records ORDER BY _row LIMIT 100`,
	"eq_high":     `SELECT json FROM records WHERE brand = 'brand 1234' ORDER BY _row LIMIT 20`,
	"eq_low":      `SELECT json FROM records WHERE country = 'DE' ORDER BY _row LIMIT 20`,
	"range_sort":  `SELECT json FROM records WHERE price >= 100 AND price < 500 ORDER BY price DESC, _row DESC LIMIT 20`,
	"q":           `SELECT json FROM records WHERE _row IN (SELECT rowid FROM fts WHERE fts MATCH '"cobalt" "lamp"' ORDER BY rowid LIMIT 20)`,
	"offset":      `SELECT json FROM records ORDER BY _row LIMIT 20 OFFSET (SELECT max(_row) / 2 FROM records)`,
	"keyset":      `SELECT json FROM records WHERE (price, _row) > (300.0, 0) ORDER BY price, _row LIMIT 20`,
	"count_eq":    `SELECT json, (SELECT count(*) FROM records WHERE country = 'FR') FROM records WHERE country = 'FR' ORDER BY _row LIMIT 1`,
	"count_range": `SELECT json, (SELECT count(*) FROM records WHERE price >= 200 AND price < 400) FROM records WHERE price >= 200 AND price < 400 ORDER BY _row LIMIT 1`,
}

func sqliteHandler(file, dir string) (http.Handler, error) {
	path := filepath.Join(dir, "peer.db")
	conn, err := sqlite.OpenConn(path, sqlite.OpenReadWrite|sqlite.OpenCreate)
	if err != nil {
		return nil, err
	}
	if err := pragmas(conn, "journal_mode = off", "synchronous = off"); err != nil {
		return nil, err
	}
	if err := sqlitex.ExecuteScript(conn, schema, nil); err != nil {
		return nil, err
	}
	if err := fill(conn, file); err != nil {
		return nil, err
	}
	if err := conn.Close(); err != nil {
		return nil, err
	}
	pool, err := sqlitex.NewPool(path, sqlitex.PoolOptions{Flags: sqlite.OpenReadOnly, PoolSize: 4, PrepareConn: func(c *sqlite.Conn) error {
		return pragmas(c, "mmap_size = 4000000000", "cache_size = -200000")
	}})
	if err != nil {
		return nil, err
	}
	buffers := sync.Pool{New: func() any { b := make([]byte, 0, 64<<10); return &b }}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := pool.Take(r.Context())
		if err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		defer pool.Put(c)
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		*buf, err = page(c, statements[strings.TrimPrefix(r.URL.Path, "/")], (*buf)[:0])
		if err != nil {
			http.Error(w, err.Error(), 500)
			return
		}
		w.Header()["Content-Type"] = []string{"application/json"}
		_, _ = w.Write(*buf)
	}), nil
}

func pragmas(c *sqlite.Conn, list ...string) error {
	for _, p := range list {
		if err := sqlitex.ExecuteTransient(c, "PRAGMA "+p, nil); err != nil {
			return err
		}
	}
	return nil
}

func page(c *sqlite.Conn, query string, b []byte) ([]byte, error) {
	stmt, err := c.Prepare(query)
	if err != nil {
		return b, err
	}
	defer stmt.Reset()
	b = append(b, `{"data":[`...)
	count := int64(-1)
	for {
		more, err := stmt.Step()
		if err != nil {
			return b, err
		}
		if !more {
			break
		}
		n := stmt.ColumnLen(0)
		b = append(b, make([]byte, n)...)
		stmt.ColumnBytes(0, b[len(b)-n:])
		b = append(b, ',')
		if stmt.ColumnCount() > 1 {
			count = stmt.ColumnInt64(1)
		}
	}
	b = append(b[:len(b)-1], `],"meta":{"version":"0123456789abcdef","limit":20`...)
	if count >= 0 {
		b = fmt.Appendf(b, `,"count":%d`, count)
	}
	return append(b, `,"next":null}}`...), nil
}

func fill(conn *sqlite.Conn, file string) (err error) {
	end := sqlitex.Transaction(conn)
	defer end(&err)
	row := int64(0)
	one, err := conn.Prepare(insert)
	if err != nil {
		return err
	}
	word, err := conn.Prepare(`INSERT INTO fts (rowid, sku, name, brand, category, country, city, zip, notes) VALUES (?,?,?,?,?,?,?,?,?)`)
	if err != nil {
		return err
	}
	step := func(s *sqlite.Stmt) error {
		if _, err := s.Step(); err != nil {
			return err
		}
		return s.Reset()
	}
	if err = each(file, func(r *record, line []byte) error {
		row++
		one.BindInt64(1, row)
		one.BindInt64(2, r.ID)
		for i, v := range []string{r.SKU, r.Name, r.Brand, r.Category, r.Country, r.City} {
			one.BindText(3+i, v)
			word.BindText(2+i, v)
		}
		one.BindFloat(9, r.Price)
		if one.BindNull(10); r.Score != nil {
			one.BindFloat(10, *r.Score)
		}
		one.BindInt64(11, r.Stock)
		one.BindBool(12, r.Active)
		one.BindText(13, r.Released)
		one.BindText(14, r.Updated)
		one.BindText(15, r.Zip)
		one.BindText(16, string(line))
		word.BindInt64(1, row)
		word.BindText(8, r.Zip)
		word.BindText(9, r.Notes)
		if err := step(one); err != nil {
			return err
		}
		return step(word)
	}); err != nil {
		return err
	}
	for _, c := range indexes {
		if err = sqlitex.ExecuteTransient(conn, fmt.Sprintf(`CREATE INDEX by_%s ON records (%[1]s)`, c), nil); err != nil {
			return err
		}
	}
	return sqlitex.ExecuteTransient(conn, `ANALYZE`, nil)
}
