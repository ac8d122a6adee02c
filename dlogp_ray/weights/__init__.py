"""Reweighting: schemes, the weights table, one small exporter per trainer."""
