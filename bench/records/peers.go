package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/402claw/clawr/dataset"
)

// startPeers stores the records of a file in SQLite and in PocketBase, and
// serves them.
func startPeers(module, file, dir string) (list []*server, err error) {
	binary := filepath.Join(dir, "peers")
	build := exec.Command("go", "build", "-C", module, "-o", binary, ".")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, err
	}
	for _, kind := range []string{"sqlite", "pocketbase"} {
		cmd := exec.Command(binary, kind, file, dir)
		cmd.Env = append(os.Environ(), "GOMAXPROCS=1")
		s, err := serveWith(kind, cmd)
		if err != nil {
			return list, err
		}
		list = append(list, s)
		fmt.Fprintf(os.Stderr, "%s took %.1f s to store the records\n", kind, s.seconds)
	}
	for _, shape := range shapeNames {
		list[0].paths[shape] = "/" + shape
	}
	list[1].paths = pocketbasePaths()
	return list, nil
}

// pocketbasePaths are the shapes in PocketBase's own grammar. It has no cursor,
// so that the next page is a range, and no search but substrings.
func pocketbasePaths() map[string]string {
	list := func(query, filter string) string {
		return "/api/collections/records/records?" + query + "&filter=" + url.QueryEscape(filter)
	}
	return map[string]string{
		"l1": "/api/collections/records/records?perPage=1&skipTotal=1", "l100": "/api/collections/records/records?perPage=100&skipTotal=1",
		"eq_high": list("perPage=20&skipTotal=1", `brand="brand 1234"`), "eq_low": list("perPage=20&skipTotal=1", `country="DE"`),
		"range_sort": list("perPage=20&skipTotal=1&sort=-price", `price>=100 && price<500`), "q": list("perPage=20&skipTotal=1", `name~"cobalt" && name~"lamp"`),
		"offset": "/api/collections/records/records?perPage=20&skipTotal=1&page=25001", "keyset": list("perPage=20&skipTotal=1&sort=price", `price>300`),
		"count_eq": list("perPage=1", `country="FR"`), "count_range": list("perPage=1", `price>=200 && price<400`),
	}
}

// sameRows fails unless SQLite's pages have clawr's rows, byte for byte. The page
// behind a cursor is left out: SQLite gives the one before it.
func sameRows(ours, sqlite *server) error {
	for _, shape := range shapeNames {
		a, err1 := ours.get(ours.paths[shape])
		b, err2 := sqlite.get(sqlite.paths[shape])
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		a, _, _ = strings.Cut(a, `],"meta"`)
		b, _, _ = strings.Cut(b, `],"meta"`)
		if a != b && shape != "keyset" {
			return fmt.Errorf("%s: clawr has %.300s\nSQLite %.300s", shape, a, b)
		}
	}
	return nil
}

// startWorkers serves the first n records from JavaScript with the rows inlined,
// and from clawr.
func startWorkers(script, file, dir string, n int) (list []*server, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	end := 0
	for range n {
		end += bytes.IndexByte(b[end:], '\n') + 1
	}
	rep, err := dataset.Ingest(context.Background(), bytes.NewReader(b[:end]), "x.ndjson", dataset.Options{Types: map[string]dataset.Type{"zip": dataset.Text}}, dir)
	if err != nil {
		return nil, err
	}
	ours, err := startServer("clawr_small", dir, rep.ID)
	if err != nil {
		return nil, err
	}
	list = append(list, ours)
	if err := ours.shapes(n); err != nil {
		return list, err
	}
	node, err := serveWith("node", exec.Command("node", script, file, fmt.Sprint(n)))
	if err != nil {
		return list, err
	}
	for _, shape := range shapeNames {
		node.paths[shape] = "/" + shape
	}
	return append(list, node), nil
}
