"""The studio: pages over probe, route, run and results folders, served on this machine or exported as a bundle.

The files stay the only truth. `web/src/api.ts` says what each resource holds, and is the contract with the pages.
"""
