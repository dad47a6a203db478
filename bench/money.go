package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
)

// money runs every measurement of the paid path, one after the other and each in
// a process of its own, so that none inherits the garbage of the one before. The
// last line of stdout has the figures of all.
func money(ctx context.Context, seconds string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	all := map[string]any{}
	for _, args := range [][]string{{"paid-async", "-seconds", seconds}, {"paid-2s"}, {"settle"}, {"verify"}, {"two-node"}} {
		fmt.Fprintf(os.Stderr, "\n== %v\n", args)
		var out bytes.Buffer
		cmd := exec.CommandContext(ctx, self, args...)
		cmd.Stdout, cmd.Stderr = io.MultiWriter(&out, os.Stderr), os.Stderr
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%v: %w", args, err)
		}
		lines := bytes.Split(bytes.TrimSpace(out.Bytes()), []byte("\n"))
		if err := json.Unmarshal(lines[len(lines)-1], &all); err != nil {
			return fmt.Errorf("%v printed no figures: %w", args, err)
		}
	}
	return json.NewEncoder(os.Stdout).Encode(all)
}
