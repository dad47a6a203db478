-- +goose Up
-- What a payer has paid to a seller in finalized blocks: the credit that async sales are given on.
ALTER TABLE exposure ADD COLUMN volume BIGINT NOT NULL DEFAULT 0;
-- How many payments are held there: what waits to be settled, without counting rows.
ALTER TABLE exposure ADD COLUMN pending BIGINT NOT NULL DEFAULT 0;
CREATE INDEX exposure_total ON exposure(network, asset, pay_to) WHERE payer = '*';
-- What async sells is summed up in exposure: thousands of rows would be added up for each of a payer's calls.
DROP INDEX payments_held;
CREATE INDEX payments_held ON payments(payer, asset, network, amount) WHERE money IN('held','signed') AND policy <> 'async';
CREATE INDEX exposure_payer ON exposure(payer, asset, network);
-- Charged and unfinished: the janitor finds what is owed.
CREATE INDEX payments_owed ON payments(lease_until) WHERE policy = 'settle_first' AND work IN('pending','running');
