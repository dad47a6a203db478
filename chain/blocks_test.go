package chain

import (
	"encoding/json"
	"testing"

	"github.com/ethereum/go-ethereum/common"
	"github.com/ethereum/go-ethereum/common/hexutil"
	"pgregory.net/rapid"
)

// FuzzBlockLogs reads the logs of a block as a hostile node sends them:
// whatever they are, no transfer pays two authorizations.
func FuzzBlockLogs(f *testing.F) {
	const token, payer = `"address":"0x00000000000000000000000000000000000000aa"`, `"0x00000000000000000000000000000000000000000000000000000000000000cc"`
	const tx = `"transactionHash":"0x0000000000000000000000000000000000000000000000000000000000000001"`
	used := func(i, nonce string) string {
		return `{"logIndex":"0x` + i + `",` + token + `,` + tx + `,"data":"0x","topics":["` + topicUsed + `",` + payer + `,"0x000000000000000000000000000000000000000000000000000000000000000` + nonce + `"]}`
	}
	moved := func(i, data string) string {
		return `{"logIndex":"0x` + i + `",` + token + `,` + tx + `,"data":"0x` + data + `","topics":["` + topicTransfer + `",` + payer + `,` + payer + `]}`
	}
	ten := "000000000000000000000000000000000000000000000000000000000000000a"
	for _, seed := range []string{`[]`, `[` + used("0", "1") + `,` + moved("1", ten) + `]`, `[` + used("0", "1") + `,` + used("1", "2") + `,` + moved("2", ten) + `]`,
		`[` + used("0", "1") + `,` + moved("1", "ff") + `,` + used("2", "2") + `]`, `[` + moved("0", ten) + `,` + used("0", "1") + `]`, `[{"logIndex":"0x0"}]`, `null`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var logs []wireLog
		if json.Unmarshal(raw, &logs) != nil {
			return
		}
		var b BlockLogs
		if b.read(logs) != nil {
			return
		}
		paid := map[int64]bool{}
		for _, u := range b.Uses {
			if u.Use == Unused || u.Amount < -1 {
				t.Fatalf("a use that is none: %+v", u)
			}
			if u.Use != Paid {
				continue
			}
			if paid[u.LogIndex] {
				t.Fatalf("the transfer %d pays twice", u.LogIndex)
			}
			paid[u.LogIndex] = true
		}
		if len(paid) > len(b.Moves) {
			t.Fatalf("%d uses were paid by %d transfers", len(paid), len(b.Moves))
		}
	})
}

// What a block's logs say of a payment is what the receipts of its
// transactions say, whoever's logs stand between.
func TestBlockLogsSayWhatReceiptsSay(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		var logs []wireLog
		receipts := map[common.Hash]*Receipt{}
		index := int64(0)
		for tx := range byte(rapid.IntRange(1, 3).Draw(r, "transactions")) {
			hash := common.Hash{tx + 1}
			receipts[hash] = &Receipt{Tx: hash, OK: true}
			for range rapid.IntRange(0, 5).Draw(r, "logs") {
				who := rapid.SampledFrom([]common.Address{payer, mate}).Draw(r, "who")
				l := rapid.SampledFrom([]Log{usedLog(who, tx), cancelLog(who, tx), movedLog(who, shop, 5), of(other, usedLog(who, tx)), of(other, movedLog(who, shop, 5))}).Draw(r, "log")
				l.Index = index
				receipts[hash].Logs = append(receipts[hash].Logs, l)
				at, address := hexutil.Uint64(index), l.Address
				logs = append(logs, wireLog{Index: &at, Address: &address, Topics: l.Topics, Data: l.Data, Tx: &hash})
				index++
			}
		}
		var b BlockLogs
		if err := b.read(logs); err != nil {
			r.Fatal(err)
		}
		for hash, receipt := range receipts {
			for _, who := range []common.Address{payer, mate} {
				for _, asset := range []common.Address{usdc, other} {
					want := receipt.Find(Transfer{Asset: asset, Payer: who, PayTo: shop, Amount: 5, Nonce: common.Hash{hash[0] - 1}})
					paid := false
					for _, u := range b.Uses {
						paid = paid || u.Tx == hash && u.Payer == who && u.Asset == asset && u.Use == Paid && u.PayTo == shop && u.Amount == 5
					}
					if paid != (want.Use == Paid) {
						r.Fatalf("the block says paid %v, the receipt %v: %+v", paid, want.Use, b.Uses)
					}
				}
			}
		}
	})
}
