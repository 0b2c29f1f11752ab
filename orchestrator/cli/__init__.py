"""The two programs: `daemon` is orchestratord, `control` is orchestratorctl."""
