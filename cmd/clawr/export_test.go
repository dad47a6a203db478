package main

import "testing"

// No cell of an export is a formula to a spreadsheet, and no other is changed.
func TestCellsAreNoFormulas(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "acme": "acme", "0x12": "0x12", "/v1/records": "/v1/records", "a=b": "a=b", "1-2": "1-2", "'x": "'x",
		"=1+1": "'=1+1", "+1": "'+1", "-1": "'-1", "@SUM(A1)": "'@SUM(A1)", "\t=1": "'\t=1", "\r=1": "'\r=1", "\n=1": "'\n=1",
		"＝1": "'＝1", "－1": "'－1", "\x00=1": "'=1",
	} {
		if got := cell(in); got != want {
			t.Errorf("%q is written as %q, want %q", in, got, want)
		}
	}
}
