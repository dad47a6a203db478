-- +goose Up
-- What a payer has paid to a seller in finalized blocks: the credit that async sales are given on.
ALTER TABLE exposure ADD COLUMN volume BIGINT NOT NULL DEFAULT 0;
-- Charged and unfinished: the janitor finds what is owed.
CREATE INDEX payments_owed ON payments(lease_until) WHERE policy = 'settle_first' AND work IN('pending','running');
