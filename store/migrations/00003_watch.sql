-- +goose Up
-- What a watcher asks for: the evidence that is not final yet, by block, and what an account's open payments come to.
CREATE INDEX payments_mined ON payments(network, block_number, block_hash) WHERE money = 'mined';
CREATE INDEX payments_held ON payments(payer, asset, network, amount) WHERE money IN('held','signed');
CREATE INDEX settlement_batches_mined ON settlement_batches(network, block_number, block_hash) WHERE state = 'mined';
CREATE INDEX settlement_items_elsewhere ON settlement_items(batch_id, block_number, block_hash) WHERE outcome = 'used_elsewhere';
