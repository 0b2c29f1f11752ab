# Short names for the programs of bin/, for those who have make. Nothing needs it.
.PHONY: test demo lint
test:
	bin/test
demo:
	bin/demo
lint:
	bin/test lint
