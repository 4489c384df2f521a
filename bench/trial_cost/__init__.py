"""What does a trial cost beside plain diffusers?"""
