"""The load tester: what to send (shapes), sending it (runner), what came of it (report, plot)."""
