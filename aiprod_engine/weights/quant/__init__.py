"""Quantised layers: recognised, kept packed, decoded at use; and what rounds into fp8."""
