"""The reweight job: a scores table -> a weights table that trainers read."""
