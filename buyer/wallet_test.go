package buyer

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/402claw/clawr"
)

func TestAWalletKeepsItsKeyToItself(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "wallet")
	w, err := CreateWallet(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, keyName))
	if err != nil {
		t.Fatal(err)
	}
	if mode := info.Mode().Perm(); mode != 0o600 {
		t.Errorf("the key file has mode %04o, want 0600", mode)
	}
	secret := strings.TrimPrefix(w.Reveal(), "0x")
	for _, form := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(form, w); strings.Contains(s, secret) || !strings.Contains(s, w.Address()) {
			t.Errorf("%s of the wallet is %q", form, s)
		}
	}
	again, err := OpenWallet(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	if again.Reveal() != w.Reveal() || again.Address() != w.Address() {
		t.Errorf("opened %s, created %s", again.Address(), w.Address())
	}
	if _, err := CreateWallet(t.Context(), dir); clawr.CodeOf(err) != CodeWalletExists {
		t.Errorf("creating it again: %v, want %s", err, CodeWalletExists)
	}
	if after, _ := OpenWallet(dir, ""); after == nil || after.Reveal() != w.Reveal() {
		t.Error("the key was changed by a refused create")
	}
}

func TestAKeyThatOthersCanReadIsRefused(t *testing.T) {
	for _, mode := range []os.FileMode{0o640, 0o604, 0o660, 0o601} {
		dir := t.TempDir()
		w := wallet(t, dir)
		path := filepath.Join(w.Dir(), keyName)
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := OpenWallet(w.Dir(), "")
		if clawr.CodeOf(err) != CodeBadWallet || !strings.Contains(err.Error(), "others can read") {
			t.Errorf("mode %04o: %v", mode, err)
		}
	}
}

func TestKeysInEveryForm(t *testing.T) {
	const (
		key     = "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"
		address = "0x2c7536e3605d9c16a7a3d7b1898e529396a65c23"
	)
	tests := []struct{ in, want string }{
		{key, address},
		{"0x" + key + "\n", address},
		{" " + strings.ToUpper(key), address},
		{`{"privateKey":"0x` + key + `"}`, address},
		{`{"address":"0x2C7536E3605D9C16a7a3D7b1898e529396a65c23","privateKey":"` + key + `"}`, address},
		{`{"address":"0x000000000000000000000000000000000000dead","privateKey":"` + key + `"}`, ""},
		{key[1:], ""},
		{key + "00", ""},
		{strings.Repeat("0", 64), ""},
		{strings.Repeat("f", 64), ""},
		{"zz" + key[2:], ""},
		{`{"privateKey":`, ""},
		{"", ""},
	}
	for _, tt := range tests {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, keyName), []byte(tt.in), 0o600); err != nil {
			t.Fatal(err)
		}
		w, err := OpenWallet(dir, "")
		if tt.want == "" {
			if clawr.CodeOf(err) != CodeBadWallet {
				t.Errorf("%q: %v, want %s", tt.in, err, CodeBadWallet)
			}
			if err != nil && strings.Contains(err.Error(), key[:20]) {
				t.Errorf("the error shows the key: %v", err)
			}
			continue
		}
		if err != nil || w.Address() != tt.want {
			t.Errorf("%q: %v, %v", tt.in, w, err)
		}
		env, err := OpenWallet(t.TempDir(), tt.in)
		if err != nil || env.Address() != tt.want {
			t.Errorf("from the environment, %q: %v, %v", tt.in, env, err)
		}
	}
	if _, err := OpenWallet(t.TempDir(), "nonsense"); clawr.CodeOf(err) != clawr.CodeUsage || strings.Contains(err.Error(), "nonsense") {
		t.Errorf("a bad key in the environment: %v", err)
	}
	if _, err := OpenWallet(t.TempDir(), ""); clawr.CodeOf(err) != CodeNoWallet {
		t.Errorf("no key at all: %v", err)
	}
}

func TestLimitsAreKeptAndNeverGuessed(t *testing.T) {
	w := wallet(t, t.TempDir())
	if l, err := w.Limits(); err != nil || l != DefaultLimits() {
		t.Errorf("new wallet: %v %v", l, err)
	}
	want := Limits{PerCall: usd("0.5"), PerDay: usd("20")}
	if err := w.SetLimits(want); err != nil {
		t.Fatal(err)
	}
	if l, err := w.Limits(); err != nil || l != want {
		t.Errorf("got %v %v, want %v", l, err, want)
	}
	for _, bad := range []string{"", "{", `{"perCallUsd":"x","perDayUsd":"1"}`, `{"perCallUsd":"-1","perDayUsd":"1"}`, `{"perCallUsd":"1","perDayUsd":"1","perWeekUsd":"1"}`, `{} {}`, `null null`} {
		if err := os.WriteFile(filepath.Join(w.Dir(), limitsName), []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if l, err := w.Limits(); clawr.CodeOf(err) != CodeBadWallet {
			t.Errorf("%q: %v %v, want %s", bad, l, err, CodeBadWallet)
		}
	}
}

func TestTwoWalletsCreatedAtOnceAreOne(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "wallet")
	made := make(chan string, 8)
	for range 8 {
		go func() {
			w, err := CreateWallet(context.Background(), dir)
			if err != nil {
				made <- ""
				return
			}
			made <- w.Address()
		}()
	}
	var who []string
	for range 8 {
		if a := <-made; a != "" {
			who = append(who, a)
		}
	}
	w, err := OpenWallet(dir, "")
	if err != nil || len(who) != 1 || who[0] != w.Address() {
		t.Errorf("%d of 8 made a wallet, want 1; %v", len(who), err)
	}
}
