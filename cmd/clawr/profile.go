package main

import (
	"errors"
	"os"
	"runtime/pprof"

	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
)

// addProfile gives a command of root the hidden flag --cpu-profile, by which
// bench/ learns where a running server's processor time goes.
func addProfile(root *cobra.Command, path ...string) {
	cmd, _, err := root.Find(path)
	if err != nil || cmd.RunE == nil {
		return
	}
	file := cmd.Flags().String("cpu-profile", "", "`file` to write a CPU profile to, until the command ends")
	if err := cmd.Flags().MarkHidden("cpu-profile"); err != nil {
		panic(err) // the flag is two lines up
	}
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) (err error) {
		if *file == "" {
			return run(cmd, args)
		}
		f, err := os.OpenFile(*file, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
		if err != nil {
			return &clawr.Error{Code: clawr.CodeFile, Param: "cpu-profile", Message: "the profile cannot be written", Fix: "--cpu-profile FILE in a directory that exists", Err: err}
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
		return run(cmd, args)
	}
}
