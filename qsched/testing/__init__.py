"""What qsched promises to its users and asks of plug-ins, as tests: a suite for each kind of thing.

Classes for the pytest module of a plug-in's author, who derives one and names the plug-in; qsched's
own tests derive them for what is built in. Nothing else imports this room. Begin with `backends`.
"""
