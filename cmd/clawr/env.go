package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/402claw/clawr"
)

// bind fills flags that the command line does not name from CLAWR_*
// variables, and settles the data directory.
func (e *env) bind(cmd *cobra.Command) error {
	var err error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Changed || f.Name == "help" || err != nil {
			return
		}
		name := "CLAWR_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		if v := e.getenv(name); v != "" {
			if serr := cmd.Flags().Set(f.Name, v); serr != nil {
				err = &clawr.Error{Code: clawr.CodeUsage, Param: f.Name, Message: fmt.Sprintf("%s=%q: %v", name, v, serr),
					Fix: "unset " + name + ", or give --" + f.Name}
			}
		}
	})
	if err != nil {
		return err
	}
	if e.data == "" {
		base := e.getenv("XDG_DATA_HOME")
		if base == "" {
			home := e.getenv("HOME")
			if home == "" {
				return &clawr.Error{Code: clawr.CodeUsage, Param: "data", Message: "there is no home directory to keep data in", Fix: "--data DIR"}
			}
			base = filepath.Join(home, ".local", "share")
		}
		e.data = filepath.Join(base, "clawr")
	}
	e.data, err = filepath.Abs(e.data)
	return err
}

// note writes a line for people on stderr.
func (e *env) note(format string, args ...any) {
	if !e.quiet {
		fmt.Fprintf(e.stderr, format+"\n", args...)
	}
}

// terminal reports whether w is a terminal that takes colors and progress bars.
func (e *env) terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && !e.noColor && e.getenv("NO_COLOR") == "" && e.getenv("TERM") != "dumb"
}

// print writes v as JSON with --json, and what text writes otherwise.
func (e *env) print(v any, text func(io.Writer) error) error {
	if !e.json {
		return text(e.stdout)
	}
	enc := json.NewEncoder(e.stdout)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
