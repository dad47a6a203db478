package main

import "slices"

// voucherBoundaries are the steps of a call by voucher and of the transactions
// that move a channel's money, in the order in which they are met.
var voucherBoundaries = []boundary{
	{"receive", []string{"voucher.received"}},
	{"reserve", []string{"hold.before", "hold.after"}},
	{"worker start", []string{"worker.before"}},
	{"worker end", []string{"worker.after"}},
	{"store answer and voucher", []string{"charge.before", "charge.after"}},
	{"respond", []string{"respond.before"}},
	{"deposit build, sign", []string{"deposit.build", "t3.before", "t3.after", "deposit.signed"}},
	{"deposit broadcast", []string{"deposit.broadcast.before", "deposit.broadcast.after"}},
	{"deposit mined", []string{"deposit.mined.before", "deposit.mined.after", "deposit.after"}},
	{"refund", []string{"refund.build", "refund.signed", "refund.broadcast.before", "refund.broadcast.after", "refund.mined.before", "refund.mined.after"}},
	{claimBuild, []string{"claim.build"}},
	{claimSign, []string{"claim.signed"}},
	{claimSent, []string{"claim.broadcast.before", "claim.broadcast.after"}},
	{claimMined, []string{"claim.mined.before", "claim.mined.after"}},
	{settled, []string{"settle.build", "settle.signed", "settle.broadcast.before", "settle.broadcast.after", "settle.mined.before", "settle.mined.after"}},
	{noticed, []string{"withdrawal.noticed"}},
}

// The boundaries that are met when the debts of a stream are old, and not in
// the stream.
const (
	claimBuild = "claim build"
	claimSign  = "claim sign"
	claimSent  = "claim broadcast"
	claimMined = "claim mined"
	settled    = "settle"
	noticed    = "withdrawal noticed"
)

// late reports whether the kill is made when claims are: after the stream.
func (k kill) late() bool {
	return slices.Contains([]string{claimBuild, claimSign, claimSent, claimMined, settled, noticed}, k.Boundary)
}

// withdraws reports whether payers begin to withdraw during the stream.
func (k kill) withdraws() bool { return k.Boundary == noticed || k.Seed%3 == 0 }

// suite is what a run is made of.
type suite struct {
	boundaries []boundary
	policies   []string
	short      map[string]string // how a table names a policy
	channels   bool              // what is paid by voucher
}

var (
	exactSuite = suite{boundaries, policies, map[string]string{"settle_before_response": "before", "settle_first": "first", "async": "async"}, false}
	// A voucher has no policy.
	voucherSuite = suite{voucherBoundaries, []string{vouchers}, map[string]string{vouchers: ""}, true}
)
