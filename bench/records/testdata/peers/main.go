// Command peers serves the records of a file from other stores, for
// comparison: SQLite at its best in Go, and PocketBase. It is a module of its
// own, so that clawr does not depend on them.
//
//	peers sqlite|pocketbase ROWS.ndjson DIRECTORY
//
// The file has the records as clawr answers them. Once they are stored it prints
// the address that it serves on and the seconds that took, and it ends with its
// standard input.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// record is one record of the benchmark's file.
type record struct {
	ID       int64    `json:"id"`
	SKU      string   `json:"sku"`
	Name     string   `json:"name"`
	Brand    string   `json:"brand"`
	Category string   `json:"category"`
	Country  string   `json:"country"`
	City     string   `json:"city"`
	Price    float64  `json:"price"`
	Score    *float64 `json:"score"`
	Stock    int64    `json:"stock"`
	Active   bool     `json:"active"`
	Released string   `json:"released"`
	Updated  string   `json:"updated"`
	Zip      string   `json:"zip"`
	Notes    string   `json:"notes"`
}

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(kind, file, dir string) error {
	start := time.Now()
	var h http.Handler
	var err error
	switch kind {
	case "sqlite":
		h, err = sqliteHandler(file, dir)
	case "pocketbase":
		h, err = pocketbaseHandler(file, dir)
	default:
		err = fmt.Errorf("no peer %q", kind)
	}
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr(), time.Since(start).Seconds())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/cpu" {
			var u syscall.Rusage
			_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
			fmt.Fprint(w, u.Utime.Nano()+u.Stime.Nano())
			return
		}
		h.ServeHTTP(w, r)
	}))
}

// each hands over every record of the file, as it is and as it is written.
func each(file string, f func(r *record, line []byte) error) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 4<<20)
	for lines.Scan() {
		var r record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return err
		}
		if err := f(&r, lines.Bytes()); err != nil {
			return err
		}
	}
	return lines.Err()
}
