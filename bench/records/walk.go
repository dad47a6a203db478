package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"
)

// walk reads the whole dataset page by page, as a buyer of all of it would, and
// fails unless every row comes exactly once. It leaves them in file.
func walk(s *server, rows int, file string, out map[string]any) (err error) {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	defer func() { err = errors.Join(err, w.Flush(), f.Close()) }()
	start := time.Now()
	seen := make([]bool, rows+1)
	n, pages := 0, 0
	for path := "/v1/records?limit=1000&format=ndjson"; path != ""; pages++ {
		r, err := http.Get("http://" + s.addr + path)
		if err != nil {
			return err
		}
		lines := bufio.NewScanner(r.Body)
		lines.Buffer(nil, 4<<20)
		for lines.Scan() {
			var row struct{ ID int }
			if err := json.Unmarshal(lines.Bytes(), &row); err != nil || row.ID < 1 || row.ID > rows || seen[row.ID] {
				r.Body.Close()
				return fmt.Errorf("%s: row %d came twice or is none: %v", path, row.ID, err)
			}
			seen[row.ID] = true
			_, _ = w.Write(append(lines.Bytes(), '\n'))
			n++
		}
		err = lines.Err()
		r.Body.Close()
		if err != nil || r.StatusCode != http.StatusOK {
			return fmt.Errorf("%s: %s %v", path, r.Status, err)
		}
		path, _, _ = strings.Cut(strings.TrimPrefix(r.Header.Get("Link"), "<"), ">")
	}
	if n != rows {
		return fmt.Errorf("%d of %d rows came", n, rows)
	}
	out["walked_rows"] = n
	fmt.Fprintf(os.Stderr, "all %d rows came once, in %d pages and %.1f s\n", n, pages, time.Since(start).Seconds())
	return nil
}
