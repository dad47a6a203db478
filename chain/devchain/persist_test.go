package devchain

import (
	"bufio"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/chain"
	"github.com/ethereum/go-ethereum/common"
)

// TestMain lets a test run the chain in a process that it can kill.
func TestMain(m *testing.M) {
	if dir := os.Getenv("DEVCHAIN_TEST_DIR"); dir != "" {
		c, err := Open(Options{Dir: dir})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println(c.URL())
		select {}
	}
	os.Exit(m.Run())
}

func TestADirectoryContinuesItsChain(t *testing.T) {
	dir := t.TempDir()
	opt := Options{Dir: dir, LikeBaseSepolia: true}
	c, err := Open(opt)
	if err != nil {
		t.Fatal(err)
	}
	payer, err := c.Key("buyer")
	if err != nil {
		t.Fatal(err)
	}
	fund(t, c, payer)
	cl, err := c.Client(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tr := transfer(t, c, payer, key(t).Address(), 5)
	f := settle(t, cl, payer, tr).Find(tr)
	head, err := cl.Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cl.Close()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}

	c, again := open(t, opt)
	if got, err := again.Head(t.Context()); err != nil || got.Hash != head.Hash {
		t.Errorf("the head is %+v, %v after a restart, want %+v", got, err, head)
	}
	if got, err := again.Evidence(t.Context(), f.Tx, tr); err != nil || got.Use != chain.Paid || *got.Evidence != *f.Evidence {
		t.Errorf("the evidence is %+v, %v after a restart, want %+v", got.Evidence, err, f.Evidence)
	}
	same, err := c.Key("buyer")
	if err != nil || same.Address() != payer.Address() {
		t.Errorf("the key is %v, %v after a restart, want %v", same, err, payer)
	}
	settle(t, again, payer, transfer(t, c, payer, tr.PayTo, 5))
	for _, name := range []string{"keys/buyer", "keys/faucet", "chain.json"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v, want 0600", name, info.Mode(), err)
		}
	}
}

func TestADirectoryRefusesAnotherChain(t *testing.T) {
	dir := t.TempDir()
	c, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir}); clawr.CodeOf(err) != clawr.CodeLocked {
		t.Errorf("opened twice: %v, want code %s", err, clawr.CodeLocked)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for _, opt := range []Options{{ChainID: 5}, {LikeBaseSepolia: true}} {
		opt.Dir = dir
		if _, err := Open(opt); clawr.CodeOf(err) != clawr.CodeWrongChain {
			t.Errorf("%+v: %v, want code %s", opt, err, clawr.CodeWrongChain)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "keys", "faucet"), []byte("no key"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir}); clawr.CodeOf(err) != clawr.CodeFile || strings.Contains(err.Error(), "no key") {
		t.Errorf("with a damaged key: %v, want code %s and not the file's contents", err, clawr.CodeFile)
	}
}

func TestOptionsThatCannotBe(t *testing.T) {
	for _, opt := range []Options{
		{Listen: "0.0.0.0:0"}, {Listen: ":0"}, {Listen: "192.0.2.1:80"},
		{Listen: "0.0.0.0:0", AllowRemote: true, LikeBaseSepolia: true},
		{LikeBaseSepolia: true, ChainID: 31337}, {ChainID: -1}, {BlockTime: -1}, {BlockTime: 1}, {Listen: "127.0.0.1:99999"},
	} {
		c, err := Open(opt)
		if clawr.CodeOf(err) != clawr.CodeUsage {
			t.Errorf("%+v: %v, want code %s", opt, err, clawr.CodeUsage)
		}
		if err == nil {
			c.Close()
		}
	}
}

// Whatever was seen in a block is still there after the process was killed.
func TestAKilledChainLosesNothing(t *testing.T) {
	dir := t.TempDir()
	// A first life writes the keys, so that this process can sign.
	c, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	signer := c.faucet
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	var seen []common.Hash
	to := key(t).Address()
	for life := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "DEVCHAIN_TEST_DIR="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		url, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		cl, err := chain.Dial(t.Context(), strings.TrimSpace(url))
		if err != nil {
			t.Fatalf("life %d: %v", life, err)
		}
		for i, hash := range seen {
			if r, err := cl.Receipt(t.Context(), hash); err != nil || r == nil {
				t.Fatalf("life %d: transaction %d of %d is gone: %v", life, i, len(seen), err)
			}
		}
		nonce, err := cl.NonceAt(t.Context(), signer.Address())
		if err != nil || nonce < uint64(len(seen)) {
			t.Fatalf("life %d: account nonce %d, %v after %d transactions", life, nonce, err, len(seen))
		}
		end := time.Now().Add(200 * time.Millisecond)
		for time.Now().Before(end) {
			tx, err := chain.Sign(signer, cl.ChainID(), nonce, chain.Fees{Max: big.NewInt(2e9), Tip: big.NewInt(1)},
				chain.Call{To: &to, Value: big.NewInt(1), Gas: 21_000})
			if err != nil {
				t.Fatal(err)
			}
			if r, o, err := cl.Submit(t.Context(), tx, 5*time.Second); err != nil || r == nil {
				t.Fatalf("life %d: %v, %v, %v", life, r, o, err)
			}
			seen = append(seen, tx.Hash)
			nonce++
		}
		cl.Close()
		cmd.Process.Kill()
		cmd.Wait()
	}
	t.Logf("%d transactions over three lives", len(seen))
	_, cl := open(t, Options{Dir: dir})
	if got, err := cl.Balance(t.Context(), to); err != nil || got.Int64() != int64(len(seen)) {
		t.Errorf("the payee has %v wei, %v, want %d", got, err, len(seen))
	}
}
