package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// fences are the code blocks of a Markdown file.
var fences = regexp.MustCompile("(?ms)^```[a-z]*\n(.*?)^```")

// words splits a command line as a shell would, as far as the documentation
// needs it: quotes, and comments at the end.
var words = regexp.MustCompile(`'[^']*'|"[^"]*"|#.*|\S+`)

// documented are the clawr command lines in the documentation, by file.
func documented(t *testing.T) map[string][][]string {
	t.Helper()
	files, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string][][]string{}
	for _, file := range append(files, "../../README.md") {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range fences.FindAllStringSubmatch(string(b), -1) {
			for line := range strings.SplitSeq(strings.ReplaceAll(m[1], "\\\n", " "), "\n") {
				line = strings.TrimPrefix(line, "$ ")
				var args []string
				for _, w := range words.FindAllString(line, -1) {
					if strings.HasPrefix(w, "#") || w == "<" || w == ">" || w == "|" || w == ";" || w == "…" {
						break
					}
					args = append(args, strings.Trim(w, `'"`))
				}
				if len(args) > 1 && (args[0] == "clawr" || args[0] == "bin/clawr") {
					out[file] = append(out[file], args[1:])
				}
			}
		}
	}
	return out
}

// Every command line that the documentation shows is one that clawr takes:
// the command exists, and so do its flags, and their values are of the right
// type. The scripts run those of the README for real.
func TestDocumentedCommandsAreTaken(t *testing.T) {
	n := 0
	for file, lines := range documented(t) {
		for _, args := range lines {
			n++
			e := &env{args: args, stdin: strings.NewReader(""), stdout: new(bytes.Buffer), stderr: new(bytes.Buffer), getenv: func(string) string { return "" }}
			root := newRoot(e)
			args = joinBools(root, args)
			cmd, rest, err := root.Find(args)
			if err != nil || cmd == root {
				t.Errorf("%s: clawr %s: no such command: %v", file, strings.Join(args, " "), err)
				continue
			}
			if err := cmd.ParseFlags(rest); err != nil {
				t.Errorf("%s: clawr %s: %v", file, strings.Join(args, " "), err)
				continue
			}
			if err := cmd.ValidateArgs(cmd.Flags().Args()); err != nil {
				t.Errorf("%s: clawr %s: %v", file, strings.Join(args, " "), err)
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d commands were found in the documentation", n)
	}
}
