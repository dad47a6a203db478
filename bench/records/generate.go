package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"strconv"
	"time"
)

// The dataset: 15 columns of every type, drawn from one seed. At 1,000,000 rows
// it has 141 MB, and 157 MB at 1,115,000.
const header = "id,sku,name,brand,category,country,city,price,score,stock,active,released,updated,zip,notes\n"

var (
	adjectives = []string{"quiet", "bright", "Größe", "nimble", "solid", "élan", "frosty", "amber", "cobalt", "rapid", "gentle", "vivid", "Ñandú", "stout", "plain", "lunar"}
	nouns      = []string{"lamp", "chair", "engine", "kettle", "Träger", "pump", "sensor", "ladder", "crate", "mirror", "valve", "bracket", "東京", "drill", "hinge", "panel"}
	categories = []string{"home", "garden", "tools", "toys", "auto", "office", "sport", "music", "books", "pets", "food", "health"}
	countries  = []string{"US", "DE", "FR", "JP", "BR", "IN", "CN", "GB", "IT", "ES", "NL", "SE", "PL", "CA", "AU", "MX", "KR", "TR", "ZA", "CH"}
)

// generate writes n rows.
func generate(out io.Writer, n int) error {
	w := bufio.NewWriterSize(out, 1<<20)
	r := rand.New(rand.NewPCG(1, 402))
	_, _ = w.WriteString(header)
	day := time.Date(2010, 1, 1, 0, 0, 0, 0, time.UTC)
	var b []byte
	for i := range n {
		b = strconv.AppendInt(b[:0], int64(i+1), 10)
		b = fmt.Appendf(b, ",SKU-%08x,", r.Uint32())
		b = append(b, adjectives[r.IntN(16)]...)
		b = append(append(b, ' '), nouns[r.IntN(16)]...)
		b = fmt.Appendf(b, " %d,brand %d,", r.IntN(100_000), r.IntN(3000))
		b = append(append(b, categories[min(r.IntN(12), r.IntN(12))]...), ',')
		b = append(append(b, countries[r.IntN(20)]...), ',')
		b = fmt.Appendf(b, "City %d,%d.%02d,", r.IntN(20_000), r.IntN(900), r.IntN(100))
		if r.IntN(20) > 0 {
			b = strconv.AppendFloat(b, float64(r.IntN(100_000))/1000, 'f', -1, 64)
		}
		b = fmt.Appendf(b, ",%d,%t,", r.IntN(500), r.IntN(3) > 0)
		b = day.AddDate(0, 0, r.IntN(5500)).AppendFormat(b, time.DateOnly)
		b = append(b, ',')
		b = day.Add(time.Duration(r.IntN(475_000_000))*time.Second).AppendFormat(b, time.RFC3339)
		b = fmt.Appendf(b, ",%05d,", r.IntN(99_999))
		switch r.IntN(10) {
		case 0:
			b = fmt.Appendf(b, "\"two lines,\nthe second \"\"quoted\"\" %d\"", r.IntN(1000))
		case 1, 2, 3:
			b = append(append(b, adjectives[r.IntN(16)]...), " and "...)
			b = append(append(b, adjectives[r.IntN(16)]...), " finish"...)
		}
		b = append(b, '\n')
		if _, err := w.Write(b); err != nil {
			return err
		}
	}
	return w.Flush()
}
