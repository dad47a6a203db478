package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
)

// report prints the rates of all servers, puts the ratios into out, and draws
// them into file.
func report(all []rates, file string, out map[string]any) error {
	peers := slices.DeleteFunc([]string{"sqlite", "pocketbase"}, func(p string) bool { return len(all[0].of[p]) == 0 })
	t := tabwriter.NewWriter(os.Stderr, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "requests/s of a CPU\tconstant\tclawr\t÷ constant\t")
	for _, p := range peers {
		fmt.Fprintf(t, "%s\tclawr ÷\t", p)
	}
	fmt.Fprintln(t)
	var ratios []float64
	least := map[string]float64{}
	for i := range all {
		r := &all[i]
		ratio := r.ratio("clawr", "constant")
		ratios = append(ratios, ratio)
		out[r.shape] = round(ratio)
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.2f\t", r.shape, r.median("constant"), r.median("clawr"), ratio)
		for _, p := range peers {
			over := r.ratio("clawr", p)
			if was, ok := least[p]; !ok || over < was {
				least[p] = over
			}
			fmt.Fprintf(t, "%.0f\t%.1f\t", r.median(p), over)
		}
		fmt.Fprintln(t)
	}
	_ = t.Flush()
	out["median"] = round(median(ratios))
	for p, v := range least {
		out[p+"_min_ratio"] = round(v)
	}
	if file == "" {
		return nil
	}
	return os.WriteFile(file, []byte(draw(all, append([]string{"constant", "clawr"}, peers...))), 0o644)
}

// reportWorkers does the same for JavaScript and few records.
func reportWorkers(all []rates, out map[string]any) {
	t := tabwriter.NewWriter(os.Stderr, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "10,000 records\tclawr\tnode\tclawr ÷\t")
	least := math.Inf(1)
	for i := range all {
		r := &all[i]
		over := r.ratio("clawr_small", "node")
		least = min(least, over)
		if r.shape == "q" {
			out["node_q_ratio"] = round(over)
		}
		fmt.Fprintf(t, "%s\t%.0f\t%.0f\t%.1f\t\n", r.shape, r.median("clawr_small"), r.median("node"), over)
	}
	_ = t.Flush()
	out["node_min_ratio"] = round(least)
}

// draw is a chart of bars over a logarithmic axis.
func draw(all []rates, servers []string) string {
	const left, top, height, bar, gap = 60, 40, 300, 14, 16
	colours := map[string]string{"constant": "#bbb", "clawr": "#d9480f", "sqlite": "#1c7ed6", "pocketbase": "#5f3dc4"}
	group := bar*len(servers) + gap
	width := left + group*len(all) + 20
	y := func(v float64) float64 { // 10 to 100,000 requests a second
		return top + height*(1-(math.Log10(max(v, 10))-1)/4)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="11">`+"\n", width, top+height+40)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/><text x="%d" y="16">requests per second of one core</text>`+"\n", width, top+height+40, left)
	for i, s := range servers {
		fmt.Fprintf(&b, `<rect x="%d" y="22" width="10" height="10" fill="%s"/><text x="%d" y="31">%s</text>`+"\n", left+i*100, colours[s], left+14+i*100, s)
	}
	for v := 10.0; v <= 100_000; v *= 10 {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%.0f</text>`+"\n", left, width-10, y(v), y(v), left-6, y(v)+4, v)
	}
	for g := range all {
		x := left + gap/2 + g*group
		for i, s := range servers {
			v := all[g].median(s)
			fmt.Fprintf(&b, `<rect x="%d" y="%.1f" width="%d" height="%.1f" fill="%s"><title>%s, %s: %.0f</title></rect>`+"\n", x+i*bar, y(v), bar-1, top+height-y(v), colours[s], all[g].shape, s, v)
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", x+bar*len(servers)/2, top+height+18, all[g].shape)
	}
	return b.String() + "</svg>\n"
}
