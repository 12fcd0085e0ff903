"""`l2l serve`: a run behind HTTP, for programs and for Label Studio. Needs the extra `serve`.

One thread owns the network (`batching`); what comes in is measured before it is read and checked before it waits
(`guard`, `asks`, `pictures`); what people correct is on disk before they are told so (`labels`).
"""
