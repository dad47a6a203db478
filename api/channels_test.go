package api

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/ledger"
	"github.com/402claw/clawr/store"
)

// till claims from one channel each time that it is asked.
type till struct {
	*store.DB
	asked *int
}

func (t till) Claim(context.Context) (int, error) { *t.asked++; return 1, nil }

func TestChannelsAreShownWithoutTheirVouchers(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.Handler.Assets = []clawr.Asset{{Network: "eip155:31337", Address: someone, Decimals: 6}}
	payers := []string{"0x00000000000000000000000000000000000000b1", "0x00000000000000000000000000000000000000b2"}
	for i, payer := range payers {
		ch := ledger.Channel{ID: "0x" + strings.Repeat(string('a'+rune(i)), 64), Network: "eip155:31337", Asset: someone, Payer: payer, PayTo: someone, Config: []byte(`{"secret":"config"}`),
			Balance: 50_000, Claimed: 1000, Withdrawal: 9000, WithdrawAt: w.now.Unix(), Synced: w.now}
		if _, err := w.db.SyncChannel(ctx, ch); err != nil {
			t.Fatal(err)
		}
		w.now = w.now.Add(time.Second)
	}
	list, err := w.Client.Channels(ctx, "", 0)
	if err != nil || len(list) != 2 || list[0].Payer != payers[1] || list[0].Balance != "50000" || list[0].Claimed != "1000" || list[0].Unclaimed != "0" || list[0].Withdrawal != "9000" || list[0].WithdrawAt.IsZero() {
		t.Errorf("%+v, %v", list, err)
	}
	b, _ := json.Marshal(list)
	if strings.Contains(string(b), "secret") {
		t.Errorf("it shows %s", b)
	}
	if list, err := w.Client.Channels(ctx, payers[0], 1); err != nil || len(list) != 1 || list[0].Payer != payers[0] {
		t.Errorf("of one payer: %+v, %v", list, err)
	}
	if _, err := w.Client.Channels(ctx, "me", 0); clawr.CodeOf(err) != clawr.CodeBadAddress {
		t.Errorf("got %v", err)
	}
	if n, err := w.Client.Claim(ctx); n != 1 || err != nil || w.claims != 1 {
		t.Errorf("%d claimed (%v), asked %d times", n, err, w.claims)
	}
}
