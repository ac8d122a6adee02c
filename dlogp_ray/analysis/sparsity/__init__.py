"""Where, in which direction and how sparsely RL changed the policy: a scores table's statistics."""
