from calumma.core.values import Hardware as Target

Target.line_bytes = 64
