"""Commands that record, train and measure; Hydra lives here."""
