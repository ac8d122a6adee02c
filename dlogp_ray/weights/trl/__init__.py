"""Weights in TRL: trainers for GRPO and SFT, reference log-probabilities for DPO and KTO."""
