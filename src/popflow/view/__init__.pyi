from .server import application as application, serve as serve
