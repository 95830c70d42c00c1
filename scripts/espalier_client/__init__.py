"""What client.py and loadtest.py are made of.

Every module but `environment` needs the packages of requirements.txt and the generated stubs:
call `environment.enter()` before the first import of another one.
"""
