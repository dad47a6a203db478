package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/402claw/clawr"
	"github.com/402claw/clawr/api"
	"github.com/402claw/clawr/usage"
)

func newEvents(e *env) *cobra.Command {
	limit := 0
	cmd := &cobra.Command{
		Use: "events", Short: "Show the last requests", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 || limit > 2000 {
				return &clawr.Error{Code: clawr.CodeUsage, Param: "limit", Message: fmt.Sprintf("--limit %d is not between 1 and 2000", limit), Fix: "--limit 100"}
			}
			return e.managed(cmd.Context(), func(ctx context.Context, ctl *controller) error {
				list, err := ctl.Events(ctx, limit)
				if err != nil {
					return err
				}
				return e.print(struct {
					Events []usage.Event `json:"events"`
				}{list}, func(w io.Writer) error { return eventTable(w, list) })
			})
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 100, "how many, at most 2000")
	cmd.AddCommand(e.eventsImport())
	return cmd
}

func eventTable(w io.Writer, list []usage.Event) error {
	var rows [][]string
	for i := range list {
		ev := &list[i]
		what := string(ev.Lifecycle)
		if n := ev.Requests(); n > 1 {
			what += fmt.Sprintf(" ×%s", thousands(n))
		}
		billed := "-"
		if ev.Billed > 0 {
			billed = "$" + ev.Billed.String()
		}
		rows = append(rows, []string{stamp(ev.Time), fmt.Sprint(ev.Status), dash(ev.API), ev.Endpoint, dash(what), billed,
			fmt.Sprintf("%.1fms", float64(ev.Latency.Microseconds())/1000), short(ev.Caller), dash(ev.Error), ev.RequestID})
	}
	return table(w, "TIME STATUS API ENDPOINT WHAT BILLED LATENCY CALLER ERROR REQUEST", rows)
}

// Imports are sent in parts, so that none is too large for the control plane
// and each is a short transaction.
const (
	partEvents = 5_000
	partBytes  = 8 << 20
)

func (e *env) eventsImport() *cobra.Command {
	return &cobra.Command{
		Use: "import FILE", Short: "Add somebody else's usage events", Args: cobra.ExactArgs(1),
		Long: `Add usage events from a file of one JSON object a line, or one JSON array ("-" is
standard input). The whole file is read first: one with an error in it changes
nothing. What has no time or no api is dropped, and the first of each (api,
request id) counts, so that importing a file twice adds nothing.`,
		RunE: func(cmd *cobra.Command, args []string) error { return e.importEvents(cmd.Context(), args[0]) },
	}
}

func (e *env) importEvents(ctx context.Context, file string) error {
	in, size, err := e.openFile(ctx, file)
	if err != nil {
		if ce, ok := errors.AsType[*clawr.Error](err); ok && ce.Code == clawr.CodeFile {
			ce.Fix = "clawr events import FILE with a file of events"
		}
		return err
	}
	defer in.Close()
	spool, err := os.CreateTemp("", "clawr-events-")
	if err != nil {
		return err
	}
	defer os.Remove(spool.Name())
	defer spool.Close()
	bar := e.progress("reading " + file)
	parsed, parts, err := readEvents(in, spool, func(bytes, events int64) { bar.update(bytes, size, events) })
	bar.clear()
	if err != nil {
		return err
	}
	return e.managed(ctx, func(ctx context.Context, ctl *controller) error {
		total := api.Imported{Parsed: parsed}
		bar := e.progress("importing")
		defer bar.clear()
		for _, p := range parts {
			got, err := ctl.ImportEvents(ctx, io.NewSectionReader(spool, p.from, p.to-p.from))
			if err != nil {
				return err
			}
			total.Added += got.Added
			bar.update(p.to, parts[len(parts)-1].to, int64(total.Added))
		}
		bar.clear()
		return e.print(total, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s events added · %s known already · %s duplicates · %s dropped (no time or no api)\n", thousands(int64(total.Added)),
				thousands(int64(total.Events-total.Added)), thousands(int64(total.Duplicates)), thousands(int64(total.Dropped)))
			return err
		})
	})
}

// part is a stretch of the spool that is sent at once.
type part struct{ from, to int64 }

// readEvents understands all of in and writes it to spool in clawr's own
// words, one event a line.
func readEvents(in io.Reader, spool io.Writer, progress func(bytes, events int64)) (usage.Parsed, []part, error) {
	out := bufio.NewWriterSize(spool, 1<<20)
	count := &countingReader{r: in}
	var parts []part
	var at part
	n := 0
	parsed, err := usage.Parse(count, func(ev usage.Event) error {
		b, err := json.Marshal(ev)
		if err != nil {
			return err
		}
		if n++; n%1000 == 0 {
			progress(count.n, int64(n))
		}
		if n%partEvents == 0 || at.to-at.from+int64(len(b)) > partBytes {
			parts = append(parts, at)
			at.from = at.to
		}
		at.to += int64(len(b)) + 1
		_, err = out.Write(append(b, '\n'))
		return err
	})
	if err != nil {
		return parsed, nil, err
	}
	switch {
	case count.n == 0:
		return parsed, nil, &clawr.Error{Code: usage.CodeBadEvents, Message: "the file is empty", Fix: "give one JSON object a line, or one JSON array of objects"}
	case parsed.Events == 0 && parsed.Dropped > 0:
		return parsed, nil, &clawr.Error{Code: usage.CodeBadEvents, Message: fmt.Sprintf("none of the %s events has both a time and an api", thousands(int64(parsed.Dropped))),
			Fix: `each needs at least {"timestamp":…,"apiId":…}`}
	}
	if at.to > at.from {
		parts = append(parts, at)
	}
	return parsed, parts, out.Flush()
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	c.n += int64(n)
	return n, err
}
