"""The compiler: language, resolve, lock, plan, store, execute and the command line. Never imports an engine."""
