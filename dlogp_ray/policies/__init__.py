"""Loading policies, checking that they can be compared, and their lm-head statistics."""
