"""Tests of `miniformer.doctor`."""
