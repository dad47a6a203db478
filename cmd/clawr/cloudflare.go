package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/cloudflare"
)

// edgeFlags are what every command that changes Cloudflare is told.
type edgeFlags struct {
	namespace, out  string
	execute, dryRun bool
}

func (f *edgeFlags) add(e *env, cmd *cobra.Command, execute bool) {
	fl := cmd.Flags()
	fl.StringVar(&f.namespace, "dispatch-namespace", "", "`name` of the dispatch namespace (also CLOUDFLARE_DISPATCH_NAMESPACE)")
	if execute {
		fl.BoolVar(&f.execute, "execute", false, "do it; without this the plan is printed alone")
		fl.BoolVar(&f.dryRun, "dry-run", false, "print the plan alone, also without credentials")
	}
	fl.StringVar(&f.out, "out", "", "`directory` that gets what would be uploaded")
}

// settle fills in what the environment says and checks it.
func (f *edgeFlags) settle(e *env) error {
	if f.namespace == "" {
		f.namespace = e.getenv("CLOUDFLARE_DISPATCH_NAMESPACE")
	}
	if f.namespace == "" {
		return &clawr.Error{Code: clawr.CodeUsage, Param: "dispatch-namespace", Message: "there is no dispatch namespace to publish to", Fix: "--dispatch-namespace NAME, or set CLOUDFLARE_DISPATCH_NAMESPACE"}
	}
	if clawr.CheckSlug(f.namespace) != nil {
		return &clawr.Error{Code: clawr.CodeUsage, Param: "dispatch-namespace", Message: fmt.Sprintf("%q is not the name of a dispatch namespace", f.namespace), Fix: "use lower-case letters, digits and inner hyphens, at most 63"}
	}
	if f.execute && f.dryRun {
		return &clawr.Error{Code: clawr.CodeUsage, Param: "execute", Message: "--execute and --dry-run exclude each other", Fix: "leave one of them out"}
	}
	if f.out != "" && f.execute {
		return &clawr.Error{Code: clawr.CodeUsage, Param: "out", Message: "--out is for a dry run", Fix: "leave --execute out"}
	}
	return nil
}

// edgeDir is what a data directory keeps about Cloudflare.
func (e *env) edgeDir() string { return filepath.Join(e.data, "cloudflare") }

// publisher speaks for the account that the environment names. A dry run may
// do without credentials: it then assumes that nothing is there yet.
func (e *env) publisher(dry bool) (*cloudflare.Publisher, error) {
	p := &cloudflare.Publisher{Shelf: cloudflare.Shelf{Dir: e.edgeDir()}, Now: time.Now}
	account, token := e.getenv("CLOUDFLARE_ACCOUNT_ID"), e.getenv("CLOUDFLARE_API_TOKEN")
	if dry && (account == "" || token == "") {
		return p, nil
	}
	for _, v := range [][2]string{{"CLOUDFLARE_ACCOUNT_ID", account}, {"CLOUDFLARE_API_TOKEN", token}} {
		if v[1] == "" {
			return nil, &clawr.Error{Code: clawr.CodeUsage, Message: v[0] + " is not set", Fix: "export " + v[0] + "=… (docs/cloudflare.md says where it comes from)"}
		}
	}
	base := e.getenv("CLOUDFLARE_API_BASE_URL")
	if err := checkURL("CLOUDFLARE_API_BASE_URL", base); err != nil {
		return nil, &clawr.Error{Code: clawr.CodeUsage, Message: fmt.Sprintf("CLOUDFLARE_API_BASE_URL=%q is not an http or https URL", base), Fix: "unset it: the default is " + cloudflare.DefaultBase}
	}
	p.API = &cloudflare.Client{Account: account, Token: token, Base: base, Note: func(s string) { e.note("%s", s) }}
	return p, nil
}

// edgeSecret is a random value that this data directory keeps in a file of its
// own, readable by its owner alone.
func (e *env) edgeSecret(name, prefix string) (string, error) {
	file := filepath.Join(e.edgeDir(), name)
	b, err := os.ReadFile(file)
	if err == nil {
		return strings.TrimSpace(string(b)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := os.MkdirAll(e.edgeDir(), 0o700); err != nil {
		return "", err
	}
	secret := prefix + cloudflare.NewSecret()
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) { // another command was faster
		return e.edgeSecret(name, prefix)
	}
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(secret + "\n")
	return secret, errors.Join(err, f.Sync(), f.Close())
}

// edge is the dispatcher that was last deployed from here for a namespace.
func (e *env) edge(p *cloudflare.Publisher, namespace string) (cloudflare.Edge, error) {
	if p.API == nil {
		return cloudflare.Edge{}, nil
	}
	up, err := p.Shelf.Serving(p.API.Account, namespace)
	if err != nil || up == nil {
		return cloudflare.Edge{}, err
	}
	token, err := e.edgeSecret("platform-token", "clawr_")
	return cloudflare.Edge{URL: up.URL, Token: token}, err
}

// carryOut prints a plan, writes its files if that is asked for, and does it
// if it is to be done.
func (e *env) carryOut(ctx context.Context, plan *cloudflare.Plan, f *edgeFlags, execute bool) error {
	if f.out != "" {
		if err := plan.Write(f.out); err != nil {
			return &clawr.Error{Code: clawr.CodeFile, Param: "out", Message: "the plan was not written to " + f.out, Fix: "--out DIR with a directory that you may write to", Err: err}
		}
	}
	if !execute {
		for _, s := range plan.Steps {
			e.note("%s", s)
		}
		switch {
		case f.out != "":
			e.note("nothing was changed; what would be uploaded is in %s", f.out)
		case plan.Changes() == 0:
			e.note("nothing to change")
		default:
			e.note("nothing was changed: --execute does it")
		}
		return nil
	}
	if err := plan.Apply(ctx, func(s cloudflare.Step) { e.note("%s", s) }); err != nil {
		return err
	}
	if plan.Changes() == 0 {
		e.note("nothing to change")
	}
	return nil
}
