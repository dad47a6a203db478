// Package sim lives through what happens between a buyer, a dispatcher, a
// facilitator and a chain when none of the others can be relied on: in virtual
// time, thousands of lives a minute, each made of one seed. The dispatcher, the
// facilitator's client, the watcher and the SQLite book are the production's;
// the chain, its node and the facilitators are fakes that are late, silent,
// wrong and lie.
package sim
