"""Files: `documents` are what people bring, `outputs` what commands leave.

Reading never waits and refuses in one line; writing is whole or changes nothing. Every room may use
both. Begin with `documents`.
"""
