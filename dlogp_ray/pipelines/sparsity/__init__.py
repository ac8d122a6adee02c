"""The sparsity job: a scores table -> where RL changed the policy."""
