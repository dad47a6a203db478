package buyer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/402claw/clawr"
)

func (w *Wallet) channelPath(id string) string { return w.path(channelFolder, id+".json") }

// lockChannel makes the caller the only one that draws on a channel, until
// unlock: a voucher goes up from what the one before it was charged.
func (w *Wallet) lockChannel(ctx context.Context, id string) (unlock func(), err error) {
	return lockFile(ctx, w.path(lockFolder, id))
}

// Channel is the channel with this id, or nil. One that cannot be read is an
// error: nobody knows then what was signed.
func (w *Wallet) Channel(id string) (*Channel, error) {
	path := w.channelPath(id)
	b, err := readFile(path)
	if b == nil || err != nil {
		return nil, err
	}
	ch, err := decodeChannel(b)
	if err == nil && ch.ID != id {
		err = errors.New("it is another channel's")
	}
	if err != nil {
		return nil, damaged(path, err)
	}
	return ch, nil
}

// Channels are all of the wallet's, oldest first. One damaged file fails them
// all: what it holds counts against the limits.
func (w *Wallet) Channels() ([]Channel, error) {
	names, err := list(w.path(channelFolder))
	if err != nil {
		return nil, err
	}
	var out []Channel
	for _, name := range names {
		ch, err := w.Channel(strings.TrimSuffix(name, ".json"))
		if err != nil {
			return nil, err
		}
		if ch != nil {
			out = append(out, *ch)
		}
	}
	slices.SortFunc(out, func(a, b Channel) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	return out, nil
}

// FindChannel is the only channel whose id begins with prefix, with or without
// 0x.
func (w *Wallet) FindChannel(prefix string) (*Channel, error) {
	all, err := w.Channels()
	if err != nil {
		return nil, err
	}
	want := "0x" + strings.TrimPrefix(strings.ToLower(prefix), "0x")
	var found []*Channel
	for i := range all {
		if len(want) > 2 && strings.HasPrefix(all[i].ID, want) {
			found = append(found, &all[i])
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	return nil, &clawr.Error{Code: clawr.CodeNotFound, Message: fmt.Sprintf("%d of the wallet's channels begin with %q", len(found), clean(prefix, 70)), Fix: "clawr channels list"}
}

// saveChannel writes ch down. The days that nobody asks for any more go.
func (w *Wallet) saveChannel(ch *Channel) error {
	oldest := dayOf(w.now().AddDate(0, 0, -keepDays))
	for _, days := range []map[string]clawr.Amount{ch.Deposited, ch.Drawn} {
		for day := range days {
			if day < oldest {
				delete(days, day)
			}
		}
	}
	b, err := ch.encode()
	if err != nil {
		return err
	}
	return writeFile(w.channelPath(ch.ID), b)
}

func (ch *Channel) encode() ([]byte, error) {
	b, err := json.MarshalIndent(ch, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode channel %s: %w", ch.ID, err)
	}
	return append(b, '\n'), nil
}

// today is what channels count on a day: what was deposited, and what vouchers
// were signed for.
func (w *Wallet) today(day string) (deposited, drawn clawr.Amount, err error) {
	all, err := w.Channels()
	for i := range all {
		deposited += all[i].Deposited[day]
		drawn += all[i].Drawn[day]
	}
	return deposited, drawn, err
}

// record writes ch down, which counts deposit and rise more than what stands on
// the disk, if the limit of the day has room for both: everything that was paid
// and deposited on a day is within it, and so is everything that was bought.
func (w *Wallet) record(ctx context.Context, ch *Channel, deposit, rise clawr.Amount, l Limits) error {
	day := dayOf(w.now())
	return w.withSpend(ctx, func(s *spend) error {
		deposited, drawn, err := w.today(day)
		if err != nil {
			return err
		}
		if deposit > 0 {
			if err := within(s.Days[day]+deposited, deposit, l, "this deposit is"); err != nil {
				return err
			}
		}
		if rise > 0 {
			if err := within(s.Days[day]+drawn, rise, l, "this call costs"); err != nil {
				return err
			}
		}
		count(&ch.Deposited, day, deposit)
		count(&ch.Drawn, day, rise)
		return w.saveChannel(ch)
	}, nil)
}

func count(days *map[string]clawr.Amount, day string, n clawr.Amount) {
	if n == 0 {
		return
	}
	if *days == nil {
		*days = map[string]clawr.Amount{}
	}
	(*days)[day] += n
}

// uncount takes back what was counted for something that is proven not done.
func uncount(days map[string]clawr.Amount, day string, n clawr.Amount) {
	if days[day] -= n; days[day] <= 0 {
		delete(days, day)
	}
}

// Draw is one line of a channel's log: an answer, and what it was charged.
type Draw struct {
	At          time.Time    `json:"at"`
	Method      string       `json:"method"`
	URL         string       `json:"url"`
	Amount      clawr.Amount `json:"amountUsd"`
	Charged     int64        `json:"charged,string"` // of the channel afterwards
	Status      int          `json:"status"`
	Deposit     int64        `json:"deposit,string"` // that came with it; 0: none
	Transaction string       `json:"transaction,omitempty"`
}

// log notes an answer. It is for people: what is owed stands in the channel, so
// that nothing waits for the disk here, and a lost line is no harm.
func (w *Wallet) log(ch *Channel, d Draw) error {
	b, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encode draw: %w", err)
	}
	path := w.path(channelFolder, ch.ID+".log")
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fileError(path, err)
	}
	_, err = f.Write(append(b, '\n'))
	if err = errors.Join(err, f.Close()); err != nil {
		return fileError(path, err)
	}
	return nil
}

// Draws are the last n lines of a channel's log, newest first.
func (w *Wallet) Draws(id string, n int) ([]Draw, error) {
	path := w.path(channelFolder, id+".log")
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fileError(path, err)
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxFile {
		f.Seek(-maxFile, io.SeekEnd)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fileError(path, err)
	}
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	slices.Reverse(lines)
	var out []Draw
	for _, line := range lines {
		var d Draw
		if len(out) < n && json.Unmarshal(line, &d) == nil {
			out = append(out, d)
		}
	}
	return out, nil
}
