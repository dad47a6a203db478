package chain

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"pgregory.net/rapid"
)

var (
	usdc  = common.HexToAddress("0x01")
	other = common.HexToAddress("0x02")
	payer = common.HexToAddress("0x0a")
	mate  = common.HexToAddress("0x0b")
	shop  = common.HexToAddress("0x0c")
	own   = common.HexToAddress("0x0d") // the payer's second account
)

func usedLog(who common.Address, nonce byte) Log {
	return Log{Address: usdc, Topics: []common.Hash{common.HexToHash(topicUsed), common.BytesToHash(who[:]), {nonce}}}
}

func cancelLog(who common.Address, nonce byte) Log {
	return Log{Address: usdc, Topics: []common.Hash{common.HexToHash(topicCanceled), common.BytesToHash(who[:]), {nonce}}}
}

func movedLog(from, to common.Address, amount int64) Log {
	return Log{Address: usdc, Topics: []common.Hash{common.HexToHash(topicTransfer), common.BytesToHash(from[:]), common.BytesToHash(to[:])},
		Data: wordInt(amount).Bytes()}
}

func of(asset common.Address, l Log) Log { l.Address = asset; return l }

// receipt numbers the logs.
func receipt(logs ...Log) *Receipt {
	r := &Receipt{Tx: common.Hash{7}, Hash: common.Hash{8}, Block: 9, OK: true, Logs: logs}
	for i := range r.Logs {
		r.Logs[i].Index = int64(i)
	}
	return r
}

func TestFind(t *testing.T) {
	huge := movedLog(payer, shop, 5)
	huge.Data = append([]byte{1}, make([]byte, 31)...)
	huge.Data[31] = 5
	short := movedLog(payer, shop, 5)
	short.Data = short.Data[24:]
	noise := Log{Address: usdc, Topics: []common.Hash{{1}, {2}, {3}}}
	anonymous := Log{Address: usdc}
	for _, test := range []struct {
		name string
		logs []Log
		want Use
		at   int64
	}{
		{"as USDC logs it", []Log{usedLog(payer, 1), movedLog(payer, shop, 5)}, Paid, 1},
		{"the transfer first", []Log{movedLog(payer, shop, 5), usedLog(payer, 1)}, Paid, 0},
		{"other events around", []Log{anonymous, usedLog(payer, 1), noise, movedLog(payer, shop, 5), noise}, Paid, 3},
		{"the second of a batch", []Log{usedLog(mate, 9), movedLog(mate, shop, 5), usedLog(payer, 1), movedLog(payer, shop, 5)}, Paid, 3},
		{"nothing", nil, Unused, 0},
		{"only a transfer", []Log{movedLog(payer, shop, 5)}, Unused, 0},
		{"another nonce", []Log{usedLog(payer, 2), movedLog(payer, shop, 5)}, Unused, 0},
		{"another payer", []Log{usedLog(mate, 1), movedLog(mate, shop, 5)}, Unused, 0},
		{"another token", []Log{of(other, usedLog(payer, 1)), of(other, movedLog(payer, shop, 5))}, Unused, 0},
		{"another token's transfer", []Log{usedLog(payer, 1), of(other, movedLog(payer, shop, 5))}, Elsewhere, 0},
		{"only the authorization", []Log{usedLog(payer, 1)}, Elsewhere, 0},
		{"less", []Log{usedLog(payer, 1), movedLog(payer, shop, 4)}, Elsewhere, 0},
		{"more", []Log{usedLog(payer, 1), movedLog(payer, shop, 6)}, Elsewhere, 0},
		{"to another", []Log{usedLog(payer, 1), movedLog(payer, own, 5)}, Elsewhere, 0},
		{"from another", []Log{usedLog(payer, 1), movedLog(mate, shop, 5)}, Elsewhere, 0},
		{"2^248 and 5", []Log{usedLog(payer, 1), huge}, Elsewhere, 0},
		{"an amount of 8 bytes", []Log{usedLog(payer, 1), short}, Elsewhere, 0},
		{"cancelled", []Log{cancelLog(payer, 1)}, Cancelled, 0},
		{"cancelled beside a transfer", []Log{cancelLog(payer, 1), movedLog(payer, shop, 5)}, Cancelled, 0},
		// The payer pays once, and uses a second authorization with the same nonce to pay itself:
		// the shop's one transfer must not count for both.
		{"a second authorization beside a real payment", []Log{usedLog(payer, 2), movedLog(payer, shop, 5), usedLog(payer, 1), movedLog(payer, own, 5)}, Elsewhere, 0},
		{"the same on a token with the other order", []Log{movedLog(payer, own, 5), usedLog(payer, 1), movedLog(payer, shop, 5), usedLog(payer, 2)}, Elsewhere, 0},
		{"no order fits", []Log{movedLog(payer, shop, 5), usedLog(payer, 1), usedLog(payer, 2), movedLog(payer, shop, 5)}, Elsewhere, 0},
	} {
		r := receipt(test.logs...)
		f := r.Find(Transfer{Asset: usdc, Payer: payer, PayTo: shop, Amount: 5, Nonce: common.Hash{1}})
		if f.Use != test.want || (f.Evidence != nil) != (f.Use == Paid) || f.Evidence != nil && f.Evidence.LogIndex != test.at {
			t.Errorf("%s: %v %+v, want %v at log %d", test.name, f.Use, f.Evidence, test.want, test.at)
		}
		if (f.Tx == r.Tx) != (f.Use != Unused) {
			t.Errorf("%s: the finding names transaction %v", test.name, f.Tx)
		}
		r.OK = false
		if f := r.Find(Transfer{Asset: usdc, Payer: payer, PayTo: shop, Amount: 5, Nonce: common.Hash{1}}); f.Use != Unused {
			t.Errorf("%s, reverted: %v, want unused", test.name, f.Use)
		}
	}
}

// Whatever a transaction logs, each transfer pays for one authorization at most.
func TestNoTransferPaysTwice(t *testing.T) {
	people := []common.Address{payer, mate, shop, own}
	rapid.Check(t, func(r *rapid.T) {
		var logs []Log
		who := rapid.SampledFrom(people)
		for range rapid.IntRange(0, 12).Draw(r, "logs") {
			switch rapid.IntRange(0, 2).Draw(r, "kind") {
			case 0:
				logs = append(logs, usedLog(who.Draw(r, "who"), rapid.ByteRange(1, 3).Draw(r, "nonce")))
			case 1:
				logs = append(logs, movedLog(who.Draw(r, "from"), who.Draw(r, "to"), rapid.Int64Range(5, 6).Draw(r, "amount")))
			case 2:
				a := who.Draw(r, "who")
				logs = append(logs, usedLog(a, rapid.ByteRange(1, 3).Draw(r, "nonce")), movedLog(a, who.Draw(r, "to"), 5))
			}
		}
		parsed := tokenLogs(receipt(logs...).Logs, usdc)
		taken := map[int]int{}
		for i, p := range pair(parsed) {
			if p < 0 {
				continue
			}
			if parsed[i].kind != used || parsed[p].kind != moved || parsed[i].who != parsed[p].who {
				r.Fatalf("log %d is paired with %d", i, p)
			}
			if first, ok := taken[p]; ok {
				r.Fatalf("transfer %d pays for authorizations %d and %d", p, first, i)
			}
			taken[p] = i
		}
	})
}

const goodReceipt = `{"transactionHash":"0x0700000000000000000000000000000000000000000000000000000000000000",
 "blockHash":"0x0800000000000000000000000000000000000000000000000000000000000000","blockNumber":"0x9","status":"0x1","gasUsed":"0x5208",
 "from":"0x000000000000000000000000000000000000000a","contractAddress":null,"l1Fee":"0x1","logs":[%s]}`

const goodLog = `{"logIndex":"0x%x","address":"0x0000000000000000000000000000000000000001","topics":["%s","0x%064x","%s"],"data":"0x%s","blockTimestamp":"0x65"}`

func wire(logs ...string) string { return fmt.Sprintf(goodReceipt, strings.Join(logs, ",")) }

func paidWire() string {
	nonce := "0x01" + strings.Repeat("0", 62)
	return wire(fmt.Sprintf(goodLog, 3, topicUsed, 10, nonce, ""),
		fmt.Sprintf(goodLog, 4, topicTransfer, 10, "0x"+strings.Repeat("0", 63)+"c", strings.Repeat("0", 63)+"5"))
}

func parseWire(b string) (*Receipt, error) {
	var w *wireReceipt
	if err := json.Unmarshal([]byte(b), &w); err != nil {
		return nil, err
	}
	return w.receipt(common.Hash{7})
}

func TestReceiptsOfAHostileNode(t *testing.T) {
	ask := Transfer{Asset: usdc, Payer: payer, PayTo: shop, Amount: 5, Nonce: common.Hash{1}}
	r, err := parseWire(paidWire())
	if err != nil || r == nil || r.Find(ask).Use != Paid || r.Time.Unix() != 101 || r.Block != 9 {
		t.Fatalf("the good receipt: %+v, %v", r, err)
	}
	swap := func(old, new string) string {
		t.Helper()
		s := strings.Replace(paidWire(), old, new, 1)
		if s == paidWire() {
			t.Fatalf("%q is not in the receipt", old)
		}
		return s
	}
	for name, b := range map[string]string{
		"null":                       "null",
		"pending":                    swap(`"blockHash":"0x0800000000000000000000000000000000000000000000000000000000000000"`, `"blockHash":null`),
		"without a number":           swap(`"blockNumber":"0x9"`, `"blockNumber":null`),
		"of another transaction":     swap(`"0x07`, `"0x06`),
		"without a transaction":      swap(`"transactionHash"`, `"t"`),
		"without a status":           swap(`"status":"0x1",`, ``),
		"a number beyond int64":      swap(`"0x9"`, `"0xffffffffffffffff"`),
		"a number beyond uint64":     swap(`"0x9"`, `"0xfffffffffffffffff"`),
		"reverted":                   swap(`"status":"0x1"`, `"status":"0x0"`),
		"status 2":                   swap(`"status":"0x1"`, `"status":"0x2"`),
		"a log without index":        swap(`"logIndex":"0x3",`, ``),
		"logs out of order":          swap(`"logIndex":"0x3"`, `"logIndex":"0x5"`),
		"the same log twice":         swap(`"logIndex":"0x3"`, `"logIndex":"0x4"`),
		"a log without address":      swap(`"address":"0x0000000000000000000000000000000000000001",`, ``),
		"a short address":            swap(`"address":"0x0000000000000000000000000000000000000001"`, `"address":"0x01"`),
		"removed":                    swap(`"blockTimestamp":"0x65"`, `"removed":true`),
		"five topics":                swap(`"topics":[`, `"topics":["`+topicUsed+`","`+topicUsed+`",`),
		"odd data":                   swap(`05","block`, `5","block`),
		"a number instead of text":   swap(`"0x9"`, `9`),
		"an array":                   "[]",
		"logs of another shape":      swap(`"logs":[`, `"logs":{"a":`) + "}",
		"an amount of another shape": swap(strings.Repeat("0", 63)+"5", ""),
	} {
		r, err := parseWire(b)
		if r != nil && r.Find(ask).Use == Paid {
			t.Errorf("%s: taken for a payment (%v)", name, err)
		}
	}
}

func FuzzReceipt(f *testing.F) {
	f.Add(paidWire())
	f.Add(wire())
	f.Add("null")
	f.Add(`{"logs":[null]}`)
	f.Add(strings.Replace(paidWire(), "0x9", "0xffffffffffffffff", 1))
	f.Fuzz(func(t *testing.T, b string) {
		r, err := parseWire(b)
		if r == nil || err != nil {
			return
		}
		for i, l := range r.Logs {
			if l.Index < 0 || i > 0 && l.Index <= r.Logs[i-1].Index {
				t.Errorf("log %d has index %d", i, l.Index)
			}
		}
		found := r.Find(Transfer{Asset: usdc, Payer: payer, PayTo: shop, Amount: 5, Nonce: common.Hash{1}})
		if (found.Evidence != nil) != (found.Use == Paid) || found.Use == Paid && (!r.OK || len(r.Logs) < 2) {
			t.Errorf("%+v of %s", found, b)
		}
	})
}

func FuzzBlock(f *testing.F) {
	f.Add(`{"number":"0x1","hash":"0x0800000000000000000000000000000000000000000000000000000000000000","timestamp":"0x65","baseFeePerGas":"0x7"}`)
	f.Add(`{"number":"0xffffffffffffffff","hash":null,"timestamp":"0xffffffffffffffff"}`)
	f.Add("null")
	f.Fuzz(func(t *testing.T, b string) {
		var w *wireBlock
		if json.Unmarshal([]byte(b), &w) != nil {
			return
		}
		if got, err := w.block(); err == nil && got != nil && (got.Number < 0 || got.Time.Unix() < 0) {
			t.Errorf("%s gives %+v", b, got)
		}
	})
}
