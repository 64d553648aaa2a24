"""Tests of `miniformer.doctor.checks`."""
