"""How few images does a search need?"""
